"""What a figure must not exceed."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Bounds:
    """Figures beside what they must not exceed."""

    exceeded: list[str] = field(default_factory=list)

    def told(self, what: str, figure: float, most: float) -> str:
        """The bound, in words; remembers a figure that exceeds it."""
        if figure <= most:
            return f"(at most {most:g})"
        self.exceeded.append(f"{what}: {figure:.3g}, at most {most:g}")
        return f"✘ (at most {most:g})"

    def verdict(self) -> int:
        """Prints what was exceeded; 1 when anything was."""
        for one in self.exceeded:
            print(f"✘ {one}")
        return 1 if self.exceeded else 0
