"""Mooncake traces: shared hashes, sessions, and complete prompts."""

from tests.experiments.workloads.trace_lines import shared, system, user


def test_mooncake_lines_share_what_has_the_same_hashes(read):
    runs = read(
        {"timestamp": 1000, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]},
        {"timestamp": 3500, "input_length": 1030, "output_length": 7, "hash_ids": [0, 1, 9]},
        "",
    )
    one, two = (run.calls[0] for run in runs)
    assert [run.start_s for run in runs] == [0.0, 2.5]
    assert [run.prompt_lens for run in runs] == [(1100,), (1030,)]
    assert shared(one, two) == 1024
    assert one.session is None


def test_a_mooncake_line_may_hash_nothing_or_only_its_start(read):
    runs = read(
        {"input_length": 1100, "hash_ids": None, "output_length": None, "timestamp": None},
        {"input_length": 2000, "hash_ids": [1]},
        {"input_length": 1000.0, "hash_ids": [1, 2], "timestamp": 1.7e12},
    )
    assert [run.prompt_lens for run in runs] == [(1100,), (2000,), (1000,)]
    assert [run.start_s for run in runs] == [0.0, 0.0, 0.0]  # the earliest given timestamp
    assert shared(runs[1].calls[0], runs[2].calls[0]) == 512


def test_mooncake_lines_of_a_session_follow_each_other(read):
    one, other = read(
        {"session_id": "a", "input_length": 300, "output_length": 40, "timestamp": 500},
        {"session_id": "b", "input_length": 20, "timestamp": 250},
        {"session_id": "a", "input_length": 150, "output_length": 20, "delay": 2},
        {"session_id": "a", "input_length": 10, "timestamp": 9000, "delay": 1000},
        {"session_id": "a", "input_length": 10, "timestamp": 9500},
    )
    assert one.prompt_lens == (300, 490, 520, 658)
    assert [call.after for call in one.calls] == [(), (0,), (1,), (2,)]
    assert [call.pause_s for call in one.calls] == [0.0, 0.002, 1.0, 0.5]
    assert [call.is_last for call in one.calls] == [False, False, False, True]
    assert {call.session for call in one.calls} == {"a"}
    assert (one.start_s, other.start_s) == (0.25, 0.0)


def test_mooncake_lines_may_carry_their_text(read):
    tools = [{"type": "function", "function": {"name": "search"}}]
    chat = [system("s" * 400), user("first")]
    first, second, verbatim, text = read(
        {"session_id": "a", "messages": chat, "tools": tools},
        {"messages": [system("s" * 400), user("second")], "tools": tools},
        {"payload": {"messages": chat, "max_tokens": 9}},
        {"text_input": "x" * 40, "output_length": 4},
    )
    assert shared(first.calls[0], second.calls[0]) == first.calls[0].num_fixed + 4
    assert verbatim.calls[0].num_fixed == 104
    assert verbatim.calls[0].num_output == 9
    assert text.prompt_lens == (14,)


def test_messages_are_the_complete_prompt(read):
    (run,) = read(
        {"session_id": "a", "messages": [user("one")]},
        {"session_id": "a", "messages": [user("one"), {"role": "assistant", "content": "two"}]},
    )
    assert run.prompt_lens == (5, 10)
    assert run.calls[1].after == (0,)
