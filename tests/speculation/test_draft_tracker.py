import numpy as np

from kvflow_jax.speculation.acceptance import AcceptanceRates
from kvflow_jax.speculation.draft_tracker import DraftTracker
from kvflow_jax.speculation.drafter import Drafter

RANDOM = np.random.default_rng(0).integers(0, 1000, 400).astype(np.int32)


class CountingDrafter(Drafter):
    num_lookups = 0

    def draft(self, *args, **kw):
        self.num_lookups += 1
        return super().draft(*args, **kw)


def tracker_of(max_tokens=8):
    drafter, rates = CountingDrafter(None, max_tokens, 16), AcceptanceRates()
    return DraftTracker(drafter, 0, rates, max_tokens=max_tokens), drafter, rates


def test_a_draft_that_holds_is_followed_without_a_lookup_until_half_is_used_up():
    tracker, drafter, _ = tracker_of()
    tokens = np.tile(RANDOM[:20], 2)
    tracker.update(tokens[:24])
    assert tracker.draft.tokens == tuple(tokens[24:32].tolist())
    tracker.update(tokens[:27])
    assert tracker.draft.tokens == tuple(tokens[27:32].tolist())
    assert drafter.num_lookups == 1
    tracker.update(tokens[:28])
    assert drafter.num_lookups == 2
    assert tracker.draft.tokens[:4] == tuple(tokens[28:32].tolist())


def test_outcomes_are_recorded_up_to_the_first_token_that_does_not_hold():
    tracker, _, rates = tracker_of()
    tokens = np.tile(RANDOM[:20], 2)
    tokens[25] = 1001
    tracker.update(tokens[:24])
    first, second = tracker.draft.kinds[:2]
    before = [rates.rate(first), rates.rate(second)]
    tracker.update(tokens[:27])
    # The first token held, the second did not; both may be of one kind.
    assert rates.rate(second) < before[1] or first == second
    assert tracker.draft.tokens == ()


def test_lookups_become_rare_while_drafts_fail():
    tracker, drafter, _ = tracker_of()
    # Pairs of tokens recur, each time followed by another token.
    pairs = [[1001, 1002, int(token)] for token in RANDOM[:200]]
    tokens = np.array(pairs, np.int32).ravel()
    for end in range(6, len(tokens)):
        tracker.update(tokens[:end])
    assert drafter.num_lookups < 0.6 * len(tokens)
