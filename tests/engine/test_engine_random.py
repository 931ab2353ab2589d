"""Random interleavings: whatever happens, structures agree and every text is its cold text."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvflow_jax.outputs import FinishReason
from tests.engine.token_runner import Client, make_engine, run


class Serving(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.engine = make_engine(num_pages=14, max_model_len=48, max_num_seqs=3)
        self.clients: list[Client] = []
        self.failed = False

    # Few different tokens and lengths, so that prompts share, split and continue each other.
    @rule(
        head=st.sampled_from([0, 8, 13, 20]),
        tail=st.lists(st.integers(0, 1), max_size=6),
        max_tokens=st.integers(1, 14),
        ignore_eos=st.booleans(),
        salt=st.sampled_from(["", "", "", "tenant"]),
        priority=st.sampled_from([0, 0, 0, 1]),
    )
    def arrive(self, head, tail, max_tokens, ignore_eos, salt, priority):
        self.clients.append(
            Client(
                self.engine,
                [9] * head + tail + [3],
                max_tokens=max_tokens,
                ignore_eos=ignore_eos,
                salt=salt,
                priority=priority,
            )
        )

    @rule(count=st.integers(1, 6))
    def step(self, count):
        for _ in range(count):
            self.engine.step()

    @rule(which=st.integers(0, 100))
    def abort(self, which):
        if self.clients:
            self.engine.abort(self.clients[which % len(self.clients)].id)

    @rule(which=st.integers(0, 100))
    def follow_up(self, which):
        """Continue a conversation: prompt, answer, and a new turn."""
        done = [c for c in self.clients if c.reason in (FinishReason.STOP, FinishReason.LENGTH)]
        if done:
            client = done[which % len(done)]
            prompt = [*client.prompt, *client.tokens, 5]
            if len(prompt) < 40:
                self.clients.append(Client(self.engine, prompt))

    @rule()
    def flush(self):
        self.engine.flush_cache()

    @rule(on_device=st.booleans())
    def fail(self, on_device):
        name = "fail_result" if on_device else "fail_submit"
        setattr(self.engine.runner, name, RuntimeError("injected"))
        self.failed = True
        self.engine.step()

    @invariant()
    def is_whole(self):
        self.engine.check_integrity()

    def teardown(self):
        self.engine.runner.fail_submit = self.engine.runner.fail_result = None
        run(self.engine)
        assert self.engine.cache.num_leased == 0
        for client in self.clients:
            assert client.reason is not None
            tokens = client.tokens
            if client.reason in (FinishReason.STOP, FinishReason.LENGTH):
                assert tokens == client.cold
            else:
                assert tokens == client.cold[: len(tokens)]
                assert client.reason is FinishReason.ABORT or self.failed


Serving.TestCase.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
TestServing = Serving.TestCase
