"""Settings: one dotted name for each, four places, and no key that is silently ignored."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lifelist.deploy.cli_local import reference
from lifelist.deploy.settings import GateCheck, Settings
from lifelist.deploy.sources import as_toml, keys, load, nearest, resolve
from lifelist.exporter.errors import BadSetting


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "lifelist.toml").write_text(
        'home = "from-file"\n[serving]\nport = 8002\n[examples]\ngate-share = 0.3\n'
    )
    return tmp_path


def test_defaults_alone_are_a_whole_set_of_settings(tmp_path: Path) -> None:
    found = resolve([], {}, tmp_path)
    assert found.settings == Settings()
    assert set(found.sources.values()) == {"default"}
    assert set(found.sources) == set(keys())


def test_each_source_overrides_the_one_before_it(folder: Path) -> None:
    variables = {"LIFELIST_SERVING__PORT": "8001", "LIFELIST_EXAMPLES__KEEP": "true", "PATH": "/bin"}
    assert load([], {}, folder / "..").serving.port == Settings().serving.port
    assert load([], variables, folder / "..").serving.port == 8001
    assert load([], variables, folder).serving.port == 8002  # defaults, environment, file, flags, in that order
    assert load(["--serving.port", "8003"], variables, folder).serving.port == 8003
    found = resolve(["--serving.port=8003"], variables, folder)
    assert found.sources["serving.port"] == "flag --serving.port"
    assert found.sources["examples.keep"] == "environment LIFELIST_EXAMPLES__KEEP"
    assert found.sources["examples.gate_share"] == f"file {folder / 'lifelist.toml'}"
    assert found.sources["training.method"] == "default"
    assert (found.settings.examples.keep, found.settings.examples.gate_share) == (True, 0.3)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--serving.port", "9000", "examples", "add", "x"],
        ["examples", "--serving.port=9000", "add", "x"],
        ["examples", "add", "x", "--port", "9000"],
        ["examples", "add", "--port=9000", "x"],
    ],
)
def test_a_flag_may_stand_anywhere_and_leaves_the_rest_in_order(arguments: list[str], tmp_path: Path) -> None:
    found = resolve(arguments, {}, tmp_path)
    assert found.settings.serving.port == 9000
    assert found.rest == ("examples", "add", "x")


def test_what_follows_two_dashes_is_never_a_setting(tmp_path: Path) -> None:
    found = resolve(["classify", "--", "--serving.port", "9000"], {}, tmp_path)
    assert found.rest == ("classify", "--", "--serving.port", "9000")
    assert found.sources["serving.port"] == "default"


def test_a_switch_needs_no_value_and_takes_only_a_truth_value(tmp_path: Path) -> None:
    assert resolve(["--examples.keep", "classes"], {}, tmp_path).rest == ("classes",)
    assert load(["--examples.keep"], {}, tmp_path).examples.keep
    assert not load(["--examples.keep", "false"], {}, tmp_path).examples.keep


@pytest.mark.parametrize(
    ("arguments", "variables", "file", "message"),
    [
        (["--serving.prt", "1"], {}, "", r"--serving\.prt is not a setting\. Did you mean --serving\.port\?"),
        ([], {"LIFELIST_SERVING_PORT": "1"}, "", "LIFELIST_SERVING_PORT .* Did you mean LIFELIST_SERVING__PORT"),
        ([], {}, "[serving]\nprot = 1", r"serving\.prot in .*lifelist\.toml is not a setting.* serving\.port"),
        ([], {}, "[servin]\nport = 1", r"servin in .* is not a setting"),
        ([], {}, "serving = 3", r"serving in .* is not a setting"),
        (["--serving.port"], {}, "", r"--serving\.port needs a value"),
        (["--serving.port", "--serving.host"], {}, "", r"--serving\.port needs a value"),
        (["--serving.port", "x"], {}, "", r"serving\.port should be .*integer.*'x' \(from flag --serving\.port\)"),
        (
            [],
            {"LIFELIST_SERVING__PORT": "70000"},
            "",
            r"serving\.port .*65535, not '70000' \(from environment",
        ),
        ([], {}, "[serving]\nport = 0", r"serving\.port .*1, not 0 \(from file .*lifelist\.toml\)"),
        ([], {}, "port = ", "cannot be read as TOML"),
        (["--config", "nowhere.toml"], {}, "", r"nowhere\.toml, which does not exist"),
        (["--gate", "classes"], {}, "", "gate should be JSON"),
        (["--gate", '[{"check": "clases"}]'], {}, "", r"gate\.0\.check should be 'classes'.*, not 'clases'"),
        (["--gate", '[{"check": "old_accuracy"}]'], {}, "", "needs a limit"),
        (["--gate", '[{"check": "classes", "limit": 1}]'], {}, "", "takes no limit"),
        (["--examples.gate-share=0.75"], {}, "", "sum may be at most 0.8"),
        (["--training.method=bick"], {}, "", r"bick.*training\.method from flag --training\.method"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_what_would_be_right(
    arguments: list[str], variables: dict[str, str], file: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "lifelist.toml").write_text(file)
    with pytest.raises(BadSetting, match=message):
        resolve(arguments, variables, tmp_path)


def test_an_argument_that_is_no_setting_is_refused_where_only_settings_are_expected(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match=r"'servng' is not a setting"):
        load(["servng"], {}, tmp_path)


def test_two_mistakes_are_two_lines(tmp_path: Path) -> None:
    with pytest.raises(BadSetting) as caught:
        load(["--serving.port=x", "--examples.gate-share=2"], {}, tmp_path)
    assert [line.split()[0] for line in str(caught.value).splitlines()] == ["examples.gate_share", "serving.port"]


def test_a_list_is_written_as_json_in_a_variable_and_as_a_table_in_the_file(tmp_path: Path) -> None:
    wanted = (GateCheck(check="classes"), GateCheck(check="old_accuracy", limit=0.02))
    text = json.dumps([check.model_dump(exclude_none=True) for check in wanted])
    assert load([], {"LIFELIST_GATE": text}, tmp_path).gate == wanted
    (tmp_path / "lifelist.toml").write_text(
        '[[gate]]\ncheck = "classes"\n[[gate]]\ncheck = "old_accuracy"\nlimit = 0.02\n'
    )
    assert load([], {}, tmp_path).gate == wanted


def test_what_was_given_can_be_written_to_a_file_and_read_back(tmp_path: Path) -> None:
    flags = [
        "--training.epochs=8",
        "--training.learning_rate",
        "0.00001",
        "--examples.keep",
        "--home",
        'a "b"\\\té\x7f',
    ]
    flags += ["--gate", '[{"check": "classes"}, {"check": "old_accuracy", "limit": 0.02}]']
    first = resolve(flags, {"LIFELIST_SERVING__PORT": "9000"}, tmp_path)
    assert list(first.given) == [
        "home",
        "gate",
        "examples.keep",
        "serving.port",
        "training.epochs",
        "training.learning_rate",
    ]
    (tmp_path / "lifelist.toml").write_text(as_toml(first.given), encoding="utf-8")
    assert load([], {}, tmp_path) == first.settings


def test_paths_do_not_depend_on_where_a_worker_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings(home=Path("here"))
    other = Settings(registry="versions", database="sqlite:///rows.db")
    monkeypatch.chdir("/")
    assert settings.home == tmp_path / "here"
    assert settings.registry_url == str(tmp_path / "here" / "registry")
    assert settings.database_url == f"sqlite:///{tmp_path / 'here' / 'lifelist.db'}"
    assert (other.registry_url, other.database_url) == (str(tmp_path / "versions"), f"sqlite:///{tmp_path / 'rows.db'}")
    assert Settings(database="postgresql+psycopg://x/y").database_url == "postgresql+psycopg://x/y"
    assert Settings(registry="memory://r").registry_url == "memory://r"


def test_settings_are_frozen_and_survive_json() -> None:
    settings = Settings(home=Path("/x"), gate=(GateCheck(check="parity_top1", limit=0.5),))
    assert Settings.model_validate_json(settings.model_dump_json()) == settings
    with pytest.raises(ValueError, match="frozen"):
        settings.registry = "elsewhere"


def test_every_setting_says_what_it_is_and_no_two_share_a_name_anywhere() -> None:
    for spelling in (lambda k: k.variable, lambda k: k.flag):
        assert len({spelling(key) for key in keys().values()}) == len(keys())
    assert [key.name for key in keys().values() if not key.description] == []


def test_the_page_about_settings_is_what_the_command_prints() -> None:
    page = Path(__file__).parents[1] / "docs" / "settings.md"
    assert page.read_text() == reference(), "make it again: lifelist settings --markdown > docs/settings.md"


def test_importing_settings_takes_neither_torch_nor_ray() -> None:
    code = (
        "import sys, lifelist.deploy.sources; print([m for m in ('torch', 'ray', 'onnxruntime') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.parametrize(("word", "answer"), [("port", " Did you mean ports?"), ("zzzzz", "")])
def test_only_a_word_that_is_like_the_one_typed_is_suggested(word: str, answer: str) -> None:
    assert nearest(word, ["ports", "host"]) == answer


def test_a_password_in_a_url_is_not_shown(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "lifelist.deploy.cli",
        "settings",
        "--database",
        "postgresql+psycopg://u:hush@h/db",
    ]
    for form in ([], ["--json"]):
        shown = subprocess.run([*command, *form], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        assert "postgresql+psycopg://u:***@h/db" in shown
        assert "hush" not in shown


@pytest.mark.parametrize(
    "hooks",
    [
        [{"url": "http://127.0.0.1/a", "secret": "very-secret-indeed"}] * 2,
        [{"secret": "very-secret-indeed"}],
        [{"url": "http://127.0.0.1/a", "secret": "very-secret-indeed", "kind": "swap"}],
        "very-secret-indeed",
    ],
)
def test_what_is_wrong_with_a_webhook_is_told_without_its_secret(hooks: object, tmp_path: Path) -> None:
    text = hooks if isinstance(hooks, str) else json.dumps(hooks)
    with pytest.raises(BadSetting, match="webhooks") as refused:
        load([], {"LIFELIST_WEBHOOKS": text}, tmp_path)
    assert "very-secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        (
            "webhooks",
            {"url": "http://127.0.0.1/a", "secret": "very-secret-indeed", "kind": "swap"},
            r"webhooks\.0\.kind \(from environment LIFELIST_WEBHOOKS\) is not a setting\. Did you mean kinds\?",
        ),
        ("gate", {"check": "classes", "min_image": 3}, r"gate\.0\.min_image .* is not a setting.* mean min_images\?"),
    ],
)
def test_what_is_no_setting_within_a_list_is_told_as_elsewhere(
    name: str, row: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(BadSetting, match=message) as refused:
        load([], {f"LIFELIST_{name.upper()}": json.dumps([row])}, tmp_path)
    assert "very-secret" not in str(refused.value)
