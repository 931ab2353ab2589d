import numpy as np

from kvflow_jax.speculation.acceptance import AcceptanceRates
from kvflow_jax.speculation.drafter import Drafter
from kvflow_jax.speculation.suffix_index import SuffixIndex

OWNER = 1


def draft(drafter, *tokens, stop_ids=()):
    return drafter.draft(OWNER, AcceptanceRates(), np.array(tokens, np.int32), stop_ids)


def drafter_of(*answers, max_tokens=4):
    drafter = Drafter(SuffixIndex(1024), max_tokens, max_match_len=8)
    for answer in answers:
        drafter.insert(OWNER, np.array(answer, np.int32), 0)
    return drafter


def test_the_longest_match_wins_wherever_it_is():
    drafter = drafter_of([1, 2, 3, 50, 51])
    assert draft(drafter, 2, 3, 60, 61, 1, 2, 3).tokens[0] == 50
    assert draft(drafter, 1, 2, 3, 60, 61, 1, 2, 3).tokens[0] == 60  # of the sequence itself
    assert draft(drafter, 8, 9).tokens == ()


def test_the_majority_of_the_continuations_decides_at_each_token():
    drafter = drafter_of([1, 2, 3, 4, 5], [1, 2, 3, 4, 6], [1, 2, 3, 4, 5], [1, 2, 9, 9, 9])
    found = draft(drafter, 7, 1, 2)
    assert found.tokens == (3, 4, 5)
    # Three of four, all of those, two of three: the less agreement, the less is expected.
    assert found.rates[1] > found.rates[0]
    assert found.rates[1] > found.rates[2]
    assert len(found.reached()) == 3
    assert found.reached() == sorted(found.reached(), reverse=True)
    assert found.after(2).tokens == (5,)


def test_of_equal_counts_the_newest_decides():
    assert draft(drafter_of([1, 2, 3], [1, 2, 4]), 1, 2).tokens == (4,)


def test_a_draft_ends_with_a_stop_token():
    assert draft(drafter_of([1, 2, 3, 7, 4]), 1, 2, stop_ids={7}).tokens == (3, 7)


def test_the_end_of_the_prompt_leads_to_the_beginning_of_the_answer():
    drafter = Drafter(SuffixIndex(1024), 4, max_match_len=8)
    drafter.insert(OWNER, np.arange(100, 130, dtype=np.int32), 20)
    assert draft(drafter, 1, 118, 119).tokens == (120, 121, 122, 123)
    assert draft(drafter, 1, 105, 106).tokens == ()  # further back in the prompt


def test_without_an_index_drafts_come_from_the_sequence():
    drafter = Drafter(None, 4, max_match_len=8)
    drafter.insert(OWNER, np.arange(9, dtype=np.int32), 0)
    assert draft(drafter, 2, 3).tokens == ()
    assert draft(drafter, 2, 3, 5, 2, 3).tokens[0] == 5
