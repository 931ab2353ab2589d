"""Chat messages as tokens."""

from tests.experiments.workloads.trace_lines import session, shared, system, turn


def test_sessions_share_the_tokens_of_the_text_they_share(read):
    text = "You review code. " * 100
    tools = [{"function": {"name": "run", "parameters": {}}}]
    runs = read(
        *(session(f"s{i}", turn(system(text), f"Task {i}.", tools=tools)) for i in range(3)),
        session("other", turn(system(text[:800] + "Or not."), tools=tools)),
        session("bare", turn(system(text))),
    )
    one, two, _, other, bare = (run.calls[0] for run in runs)
    assert shared(one, two) >= one.num_fixed
    num_tools = one.num_fixed - bare.num_fixed
    assert num_tools > 0
    assert shared(one, other) == num_tools + 4 + 800 // 4
    assert shared(one, bare) < 16


def test_images_have_no_tokens_and_tool_calls_have(read):
    picture = {"type": "image_url", "image_url": {"url": "data:" + "A" * 4000}}
    content = [{"type": "text", "text": "abcd"}, picture]
    said = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    (run,) = read(session("a", turn({"role": "user", "content": content}), turn(said)))
    assert run.prompt_lens[0] == 5
    assert 4 < len(run.calls[1].parts[-1]) < 20
