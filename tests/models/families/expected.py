"""What transformers computes of a tiny model, as the test file of a family has it."""

from dataclasses import dataclass

from tests.models.tiny import prompt_tokens

NUM_TOKENS = 64  # more than two pages, every window and the wavelengths that scaling changes
POSITIONS = (15, 31, 47, 63)  # of the logits that are compared, among NUM_TOKENS
TOKENS = (0, 60, 120, 180, 240)  # of the logits that are compared, among the vocabulary
GREEDY_PROMPT = 40  # past the original length of longrope, where transformers switches factors
NUM_GREEDY = 32
TOLERANCE = 1e-3  # of float32 logits

PROMPT = prompt_tokens(NUM_TOKENS)


@dataclass(frozen=True)
class Expected:
    """Results of transformers, rounded far below ``TOLERANCE``.

    Attributes:
        logits: of PROMPT, a row for each of POSITIONS, a column for each of TOKENS.
        greedy: continuation of the first GREEDY_PROMPT tokens of PROMPT; empty if it is not tested.
    """

    logits: tuple[tuple[float, ...], ...]
    greedy: tuple[int, ...] = ()
