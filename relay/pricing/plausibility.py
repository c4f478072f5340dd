"""What a call is charged for: the provider's figures where the call can have used so much, else a count.

The rule, in this order:

1. *Nothing came.* The answer holds nothing and the provider reported no usage: there is nothing to charge.
2. *As reported.* Every figure is a whole number; the prompt is within the call's input bound plus
   PROMPT_ALLOWANCE; the answer is within the output limit of all choices plus OUTPUT_ALLOWANCE; no meter
   occurs that the call cannot have; and neither side is reported as zero though it was there.
3. *As reported, up to the hold.* A prompt or answer within its allowance may cost more than was held. Then
   the units above the bound are left out, so that no charge is ever above its hold.
4. *Counted.* Otherwise none of the figures is believed: who reports one that cannot be is not trusted with
   the others. The prompt and the answer are counted by their text, at most up to the bound. (False figures
   that were cut to the bound would charge the customer everything that was held.)

The record keeps the provider's own figures beside those that were charged, and says why.

PROMPT_ALLOWANCE: providers add tokens of their own to a prompt: the system text of a chat template (tens
of tokens) and instructions for tools (some hundreds). OUTPUT_ALLOWANCE: some count end-of-turn and channel
markers beside the limit. Reasoning has no allowance: it counts inside the output limit.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from relay.pricing.bound import Bound, MaxUsage
from relay.pricing.errors import FieldError
from relay.pricing.meter_names import INPUT_METERS, OUTPUT_METERS
from relay.pricing.settlement import settle
from relay.pricing.tariff import Admission
from relay.pricing.usage import METERS_FORMAT, normalise

PROMPT_ALLOWANCE = 1024
OUTPUT_ALLOWANCE = 64
_TOTALS = ("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "total_tokens")


class BilledUsage(NamedTuple):
    """``meters``: to be charged, none where nothing is owed (release the hold then).

    ``recorded``: for the usage record, from which ``normalise(usage_format, recorded)`` gives the meters
    again. ``counted``: the meters were counted here. ``doubt``: why the provider's figures were not taken as
    they came, else None; an operator must hear of it.
    """

    meters: Mapping[str, int]
    recorded: Mapping[str, Any]
    usage_format: str
    counted: bool = False
    doubt: str | None = None


def billed_usage(
    admission: Admission,
    bound: Bound,
    allotted: Mapping[str, int],
    usage_format: str,
    usage: Any,
    count_prompt: Callable[[], int],
    count_output: Callable[[], int],
) -> BilledUsage:
    """What to charge for a call that was held by ``bound`` and got ``allotted`` typed units.

    ``usage``: the provider's, as it came, or None; ``usage_format``: of ``normalise``. ``count_prompt`` and
    ``count_output`` give counted tokens of the prompt and of everything that the provider generated. Never
    raises for anything that a provider may send.
    """
    doubt = None
    if usage is not None:
        recorded, told, doubt = _told(usage_format, usage)
        if told is not None:
            impossible = _impossible(told, bound.most, count_output)
            if impossible is None:
                believed = BilledUsage(told, recorded, usage_format, doubt=doubt)
                return _within_hold(believed, admission, bound, allotted)
            doubt = impossible
    return _counted(bound.most, usage, doubt, count_prompt, count_output)


def _told(usage_format: str, usage: Any) -> tuple[Mapping[str, Any], dict[str, int] | None, str | None]:
    """(usage for the record, its meters or None, what is wrong with it)."""
    try:
        return usage, normalise(usage_format, usage), None
    except FieldError as error:
        doubt = str(error)
    # Details that cannot be read leave the totals as they are.
    totals = {name: usage[name] for name in _TOTALS if name in usage} if isinstance(usage, Mapping) else {}
    try:
        return {**totals, "why": doubt, "provider": usage}, normalise(usage_format, totals), doubt
    except FieldError:
        return {}, None, doubt


def _impossible(told: Mapping[str, int], most: MaxUsage, count_output: Callable[[], int]) -> str | None:
    """Why the call cannot have used this, or None when it can."""
    possible = {*most.inputs, *most.outputs}
    prompt = answer = 0
    others = False
    for meter, quantity in told.items():
        if meter not in possible and quantity > most.others.get(meter, 0):
            return f"{meter}: {quantity}, where the call can have {most.others.get(meter, 0)}"
        if meter in INPUT_METERS:
            prompt += quantity
        elif meter in OUTPUT_METERS:
            answer += quantity
        else:
            others = True
    if prompt > most.input_units + PROMPT_ALLOWANCE:
        return f"a prompt of {prompt} units, where the call's has {most.input_units} at most"
    if answer > most.max_output + OUTPUT_ALLOWANCE:
        return f"an answer of {answer} units, where the call's has {most.max_output} at most"
    return _missing(prompt, answer, others, most, count_output)


def _missing(
    prompt: int, answer: int, others: bool, most: MaxUsage, count_output: Callable[[], int]
) -> str | None:
    """Why a figure of zero cannot be; pieces, seconds and characters (``others``) stand for both sides."""
    if others:
        return None
    if not answer and most.max_output and count_output():
        return "an answer of 0 units, though one was generated"
    answered = answer or (not most.max_output and count_output())  # vectors are no units of an answer
    if answered and not prompt and most.input_units:
        return "a prompt of 0 units, though there is an answer"
    return None


def _within_hold(
    believed: BilledUsage, admission: Admission, bound: Bound, allotted: Mapping[str, int]
) -> BilledUsage:
    """The same, without what costs more than was held."""
    meters = believed.meters
    cut = _cut(_cut(meters, INPUT_METERS, bound.most.input_units), OUTPUT_METERS, bound.most.max_output)
    if cut == meters:
        return believed
    charge = settle(admission.tariff, meters, allotted, admission.service_tier).list_charge
    if charge.amount <= bound.held(allotted):
        return believed
    doubt = f"{sum(meters.values()) - sum(cut.values())} units above the call's bound are not charged"
    recorded = {"meters": cut, "why": doubt, "provider": believed.recorded}
    return BilledUsage(cut, recorded, METERS_FORMAT, doubt=doubt)


def _cut(meters: Mapping[str, int], names: tuple[str, ...], most: int) -> Mapping[str, int]:
    """The meters with at most so many units of ``names`` together; what goes is taken in their order."""
    excess = sum([meters.get(name, 0) for name in names]) - most
    if excess <= 0:
        return meters
    left = dict(meters)
    for name in names:
        taken = min(excess, left.get(name, 0))
        if taken:
            excess -= taken
            left[name] -= taken
    return {meter: quantity for meter, quantity in left.items() if quantity}


def _counted(
    most: MaxUsage,
    usage: Any,
    doubt: str | None,
    count_prompt: Callable[[], int],
    count_output: Callable[[], int],
) -> BilledUsage:
    """By the text alone, as the first kind of prompt and answer that the call has."""
    generated = count_output()
    output = min(max(generated, 0), most.max_output)
    prompt = min(max(count_prompt(), 0), most.input_units) if generated > 0 else 0
    recorded = {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "meters": {most.inputs[0]: prompt, most.outputs[0]: output},
        "estimated": True,
        "why": doubt,
        "provider": usage,
    }
    return BilledUsage(normalise(METERS_FORMAT, recorded), recorded, METERS_FORMAT, True, doubt)
