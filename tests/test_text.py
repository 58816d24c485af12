"""What may be shown and kept of a text."""

import pickle

import pytest

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.program import compose_configs
from ddpm_train.config.text import holds_secret, shown, without_secrets
from ddpm_train.system.console import Console
from ddpm_train.training.preflight import PROGRAM

TOKEN = "hf_" + "aB3" * 11


@pytest.mark.parametrize(
    ("text", "public"),
    [
        (f"hub.token={TOKEN}", "hub.token=hf_…"),
        ("s3://AKIAKEY:wJal/rXU+tnF@bucket/runs", "s3://…@bucket/runs"),
        ("no such host: sftp://me:p@ss:word@host:22/x.", "no such host: sftp://…@host:22/x."),
        ("simplecache::s3://k:s@bucket", "simplecache::s3://…@bucket"),
        ("https://ghp_secret@host/owner/name", "https://…@host/owner/name"),
        ("https://b.host/x?X-Amz-Signature=abc&y=1", "https://b.host/x?X-Amz-Signature=…&y=1"),
        ("'https://h/x?sv=1&sig=a%2Fb&access_token=c'", "'https://h/x?sv=1&sig=…&access_token=…'"),
        ("gs://b?AWSAccessKeyId=a&api_key=b", "gs://b?AWSAccessKeyId=…&api_key=…"),
    ],
)
def test_no_secret_is_kept(text: str, public: str) -> None:
    assert without_secrets(text) == public and holds_secret(text) and not holds_secret(public)
    assert Mistakes(text).lines == (public,) and str(Mistakes(text)) == public
    assert pickle.loads(pickle.dumps(Mistakes(text, "a"))).lines == (public, "a")


@pytest.mark.parametrize(
    "text",
    [
        *("hf_datasets/name", "s3://bucket/runs", "http://localhost:8080/a@b", "hf://owner/name@main"),
        *(
            "abfs://container@account.dfs.core.windows.net/x",
            "github://owner:name@main/x",
            "https://h/x?design=1&page=2",
        ),
        *("sftp://me@host/runs", "a:b@c", "dataset.path=C:\\cats", "13:37 mail@host"),
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert without_secrets(text) == text


@pytest.mark.parametrize("mirror", ["s3://KEY:${oc.env:KEPT}@bucket/runs", "${oc.env:URL}", "s3://K:Secret/a@bucket"])
def test_credentials_in_a_url_are_refused(mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would be saved and shown. The remedy says where they belong."""
    monkeypatch.setenv("KEPT", "Secret")
    monkeypatch.setenv("URL", "https://host/bucket?sig=Secret")
    with pytest.raises(Mistakes) as raised:
        compose_configs(PROGRAM, [f"checkpoint.mirror='{mirror}'"])
    (line,) = raised.value.lines
    assert line.startswith("checkpoint.mirror=") and "AWS_ACCESS_KEY_ID" in line and "Secret" not in line


def test_the_console_takes_lines(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(enabled=True)
    console.say("found a\nerror: b.png", "s3://k:s@bucket")
    console.warn("warning: \x1b[2Jb\rc")
    console.table({"output": "a\n  b"})
    said = capsys.readouterr()
    assert said.out == "found a\\nerror: b.png\ns3://…@bucket\n  output     a\n  b\n"
    assert said.err == "warning: \\x1b[2Jb\\rc\n"


def test_a_message_cannot_make_up_a_line() -> None:
    assert shown("a\x1b[2K\nerror: b\r\u202e") == r"a\x1b[2K\nerror: b\r\u202e"
    assert shown("a table:\n  key  value\n  x\ty") == "a table:\n  key  value\n  x\\ty"


def test_long_values_are_cut_and_the_remedy_stays() -> None:
    word = shown(f"name={'x' * 5000}: too long; give another one")
    assert word.startswith("name=xxx") and word.endswith("x: too long; give another one") and len(word) < 500
    assert "… (5,006 characters) …" in word
    line = shown(f"name={'x ' * 5000}: no such thing; give another one")
    assert line.endswith(": no such thing; give another one") and len(line) < 2000
    assert shown(word) == word and shown(line) == line
