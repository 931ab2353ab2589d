"""Both ends of a connection prove that they know the secret, or neither goes on."""

import threading

import pytest

from kvflow_jax.distributed.authentication import (
    SECRET_VARIABLE,
    AuthenticationError,
    authenticate_follower,
    authenticate_leader,
    read_secret,
)
from kvflow_jax.errors import ConfigError
from tests.distributed import pairs

SECRET = b"the secret of the group"


def meet(leader_secret, follower_secret):
    """Return the errors of the leader and of the follower, None for an end without one."""
    errors = {}

    def run(name, authenticate, connection, secret):
        try:
            authenticate(connection, secret, 30.0)
        except Exception as error:
            errors[name] = error
            connection.close()

    with pairs.connected() as (near, far):
        args = ("follower", authenticate_leader, far, follower_secret)
        thread = threading.Thread(target=run, args=args)
        thread.start()
        run("leader", authenticate_follower, near, leader_secret)
        thread.join()
    return errors.get("leader"), errors.get("follower")


@pytest.mark.parametrize("secret", [SECRET, b""])
def test_ends_of_one_secret_go_on(secret):
    assert meet(secret, secret) == (None, None)


@pytest.mark.parametrize(("leader", "follower"), [(SECRET, b""), (b"", SECRET), (SECRET, b"x")])
def test_ends_of_different_secrets_do_not(leader, follower):
    error, other = meet(leader, follower)
    assert isinstance(error, AuthenticationError)
    assert isinstance(other, (EOFError, OSError))


def test_a_leader_without_the_secret_is_found_out():
    with pairs.connected() as (near, far):
        near.send_frame(bytes(64))  # a nonce, and no proof
        with pytest.raises(AuthenticationError, match="process 0 does not know the secret"):
            authenticate_leader(far, SECRET, 30.0)


def test_a_proof_cannot_be_sent_back():
    """A peer that reflects what it is sent proves nothing."""
    with pairs.connected() as (near, far):

        def reflect():
            nonce = far.receive_bytes(32, 30.0)
            far.send_frame(nonce * 2)

        thread = threading.Thread(target=reflect)
        thread.start()
        with pytest.raises(AuthenticationError):
            authenticate_follower(near, SECRET, 30.0)
        thread.join()


def test_the_secret_is_of_a_file_or_of_the_environment(tmp_path):
    file = tmp_path / "secret"
    file.write_bytes(SECRET + b"\n")
    variables = {SECRET_VARIABLE: "another secret, 24 bytes"}
    assert read_secret(file, variables) == SECRET
    assert read_secret(None, variables) == b"another secret, 24 bytes"
    assert read_secret(None, {}) == b""


def test_a_short_or_missing_secret_is_refused_without_showing_it(tmp_path):
    file = tmp_path / "secret"
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_secret(file, {})
    file.write_bytes(b"hunter2\n")
    for args in ((file, {}), (None, {SECRET_VARIABLE: "hunter2"})):
        with pytest.raises(ConfigError, match="has 7 bytes, at least 16") as caught:
            read_secret(*args)
        assert "hunter2" not in str(caught.value)
