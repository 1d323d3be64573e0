import io
import sys

import pytest

from fmd_tf.errors import UserError, command_line


@pytest.mark.parametrize("error", [UserError("expected more"), OSError("expected more")])
def test_a_users_error_is_a_message(error: Exception, capsys: pytest.CaptureFixture[str]):
    @command_line
    def main(argv):
        raise error

    assert main([]) == 2
    assert capsys.readouterr().err == "error: expected more\n"


@pytest.mark.parametrize(("said", "expected"), [((), "stopped"), (("goes on",), "goes on")])
def test_ctrl_c_is_a_message(said: tuple, expected: str, capsys: pytest.CaptureFixture[str]):
    @command_line
    def main(argv):
        raise KeyboardInterrupt(*said)

    assert main([]) == 130
    assert capsys.readouterr().err == f"{expected}\n"


def test_a_bug_is_not_hidden():
    @command_line
    def main(argv):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        main()


def test_what_the_console_cannot_show_is_escaped(monkeypatch: pytest.MonkeyPatch):
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="cp1252"))

    @command_line
    def main(argv):
        print("маска")
        sys.stdout.flush()
        return 0

    assert main() == 0
    assert buffer.getvalue().startswith(rb"\u043c\u0430")
