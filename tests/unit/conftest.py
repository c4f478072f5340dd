"""How hypothesis runs: without a clock, since machines are busy. A mutation run needs no smallest example."""

from hypothesis import Phase, settings

settings.register_profile("default", deadline=None)
settings.register_profile(
    "mutation",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=10,
    phases=(Phase.explicit, Phase.generate),
)
settings.load_profile("default")
