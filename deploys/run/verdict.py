"""What looks at the launch checklist come to.

Apart from the commands, which take a tenth of a second more to import: a look of `verify` needs this alone.
"""

from __future__ import annotations

from collections.abc import Sequence

# pytest's exit codes; nothing to run is usual with a limit to hosts that a file does not check.
CHECKS_FAILED = 1
NO_TESTS = 5


def verdict(codes: Sequence[int], counts: Sequence[tuple[int, int]]) -> tuple[bool, str]:
    """Whether all is true, and the words for it, from each look's exit code and its (passed, failed)."""
    passed, failed = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    if broke_off(codes, counts):
        return False, f"broke off after {passed + failed} checks, {failed} failed; the reason stands above"
    if failed:
        return False, f"{failed} of {passed + failed} checks failed"
    return bool(passed), f"{passed} checks, all true" if passed else "no check applies to these hosts"


def broke_off(codes: Sequence[int], counts: Sequence[tuple[int, int]]) -> bool:
    """Whether a look ended otherwise than by its checks. Silence is not consent: each must tell counts."""
    explained = {0, NO_TESTS, CHECKS_FAILED} if any(failed for _, failed in counts) else {0, NO_TESTS}
    return len(counts) < len(codes) or not set(codes) <= explained
