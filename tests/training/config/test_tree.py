"""Settings: where they come from, what is refused and in which words, and that they survive being written down."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pusa.errors import InputError
from pusa.training.config import text_formats
from pusa.training.config.presets import PRESETS
from pusa.training.config.sections import TARGETS, TASKS
from pusa.training.config.tree import SECTIONS, Config, differences, read


def written(folder: Path, text: str, name: str = "run.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# ----------------------------------------------------------------------------------------------- where they come from


def test_later_places_win(tmp_path: Path) -> None:
    file = written(tmp_path, "train: {lr: 3e-4, batch: 2}\nlora:\n  rank: 8\n")
    default, preset = Config(), PRESETS["tiny"].config["train"]
    chosen = read(file, "tiny", {"train.batch": "5"})
    assert chosen.train.batch == 5
    assert chosen.train.lr == 3e-4
    assert chosen.train.steps == preset["steps"] != default.train.steps
    assert chosen.train.weight_decay == default.train.weight_decay
    assert chosen.lora is not None
    assert chosen.lora.rank == 8
    assert read(None, None, {}) == default


@pytest.mark.parametrize(
    ("typed", "section", "name", "value"),
    [
        ({"train.lr": "1e-4"}, "train", "lr", 1e-4),
        ({"train.lr": 1e-4}, "train", "lr", 1e-4),
        ({"train": {"lr": 2}}, "train", "lr", 2.0),
        ({"data.path": "2024"}, "data", "path", "2024"),
        ({"data.cache": "/x/no"}, "data", "cache", Path("/x/no")),
        ({"data.buckets": "832x480x81,64x64x17"}, "data", "buckets", ["832x480x81", "64x64x17"]),
        ({"data.buckets": "832x480x81"}, "data", "buckets", ["832x480x81"]),
        ({"data.buckets": "null"}, "data", "buckets", None),
        ({"train.betas": "0.9,0.95"}, "train", "betas", (0.9, 0.95)),
        ({"train.clip": "none"}, "train", "clip", None),
        ({"train.ema": "post-hoc"}, "train", "ema", "post-hoc"),
        ({"train.ema": ".99"}, "train", "ema", 0.99),
        ({"train.gradient_checkpointing": "true"}, "train", "gradient_checkpointing", True),
        ({"validate.every": "0"}, "validate_", "every", 0),
        ({"track.loggers": "wandb"}, "track", "loggers", ["wandb"]),
        ({"preview.prompts": "[a cat, 'no, a dog']"}, "preview", "prompts", ["a cat", "no, a dog"]),
    ],
)
def test_what_is_typed_becomes_the_kind_that_the_setting_takes(
    typed: dict[str, Any], section: str, name: str, value: Any
) -> None:
    found = getattr(getattr(read(None, None, typed), section), name)
    assert found == value
    assert type(found) is type(value) or isinstance(value, Path)


def test_tasks_are_typed_as_a_mapping_and_replace_the_default_mix() -> None:
    typed = {"sigma.pattern": "tasks", "sigma.tasks": "image-to-video=0.75,text-to-video=0.25"}
    assert read(None, None, typed).sigma.tasks == {"image-to-video": 0.75, "text-to-video": 0.25}
    assert read(None, None, {"sigma.pattern": "tasks"}).sigma.tasks == TASKS


@pytest.mark.parametrize("name", ["run.yaml", "run.toml"])
def test_no_lora_is_full_training(tmp_path: Path, name: str) -> None:
    text = 'lora = "none"' if name.endswith("toml") else "lora: null"
    assert read(written(tmp_path, text, name), None, {}).lora is None
    assert read(None, "tiny", {"lora": "null"}).lora is None
    back = read(written(tmp_path, text, name), None, {"lora.rank": "4"}).lora
    assert back is not None
    assert (back.rank, back.targets) == (4, list(TARGETS))


def test_an_empty_section_and_an_empty_file_change_nothing(tmp_path: Path) -> None:
    assert read(written(tmp_path, "lora:\ntrain:\n  # lr: 1\n"), None, {}) == Config()
    assert read(written(tmp_path, "# nothing\n"), None, {}) == Config()


def test_toml_says_the_same_as_yaml(tmp_path: Path) -> None:
    toml = (
        '[train]\nlr = 1e-4\nbetas = [0.9, 0.95]\nclip = "none"\n[sigma]\npattern = "tasks"\n'
        "[sigma.tasks]\nextension = 1.0\n"
    )
    yaml_ = (
        "train:\n  lr: 1e-4\n  betas: [0.9, 0.95]\n  clip: null\nsigma:\n  pattern: tasks\n  tasks:\n    extension: 1\n"
    )
    assert read(written(tmp_path, toml, "a.toml"), None, {}) == read(written(tmp_path, yaml_), None, {})


def test_yaml_has_none_of_the_old_surprises() -> None:
    text = "a: 1e-4\nb: no\nc: 1:30\nd: 2020-01-01\ne: 010\nf: 1_000\ng: true\nh: ~\ni: .5\nj: -3\nk: off\nl: 0x10"
    assert text_formats.parse(text) == {
        "a": 1e-4, "b": "no", "c": "1:30", "d": "2020-01-01", "e": 10, "f": "1_000", "g": True, "h": None, "i": 0.5,
        "j": -3, "k": "off", "l": "0x10",
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------ what is refused

REFUSED = [
    ("train: {lrr: 3}", "There is no setting 'lrr' in the section train (FILE); did you mean train.lr?"),
    ("trian: {lr: 3}", "There is no section 'trian' (FILE); did you mean train?"),
    ("preset: tiny",
     "There is no section 'preset' (FILE); give the preset on the command line, as --preset NAME."),
    ("train: {rates: {'lora_[': 2}}",
     "train.rates (FILE) has the pattern 'lora_[', which is damaged (unterminated character set at position 5); give "
     "parts of names."),
    ("lora: {exclude: [attn2, 'to_(']}",
     "lora.exclude (FILE) has the pattern 'to_(', which is damaged (missing ), unterminated subpattern at position 3); "
     "give parts of names."),
    ("lr: 3", "There is no section 'lr' (FILE); did you mean train.lr?"),
    ("zzz: 3",
     "There is no section 'zzz' (FILE); give one of model, data, sigma, lora, train, memory, save, validate, "
     "preview or track."),
    ("train: 3", "The section train is 3 (FILE); write settings in this section, such as train.steps."),
    ("train: {lr: fast}", 'train.lr is "fast" (FILE); give a number above 0.'),
    ("train: {lr: true}", "train.lr is true (FILE); give a number above 0."),
    ("train: {lr: .inf}", "train.lr is inf (FILE); give a number above 0."),
    ("train: {lr: 0}", "train.lr is 0 (FILE); give a number above 0."),
    ("train: {steps: 1.5}", "train.steps is 1.5 (FILE); give a whole number of at least 1."),
    ("train: {steps: }", "train.steps is null (FILE); give a whole number of at least 1."),
    ("train: {steps: '20'}", 'train.steps is "20" (FILE); give a whole number of at least 1.'),
    ("train: {seed: -1}", "train.seed is -1 (FILE); give a whole number from 0 to 2^63 - 1."),
    ("train: {betas: [0.9, 1.0]}", "train.betas[1] is 1 (FILE); give a number of at least 0 and below 1."),
    ("train: {betas: [0.9]}", "train.betas[1] is missing (FILE); give a number of at least 0 and below 1."),
    ("train: {ema: 2}", "train.ema is 2 (FILE); give a number between 0 and 1, or post-hoc, or null."),
    ("train: {on_nan: ignore}", 'train.on_nan is "ignore" (FILE); give stop or skip.'),
    ("train: {gradient_checkpointing: yes}", 'train.gradient_checkpointing is "yes" (FILE); give true or false.'),
    ("model: {expert: medium}", 'model.expert is "medium" (FILE); give high or low, or null.'),
    ("model: {source: 3}", "model.source is 3 (FILE); give a text."),
    ("data: {cache: ''}", "data.cache (FILE) is empty; give a path."),
    ("train: {steps: 3.0}", "train.steps is 3.0 (FILE); give a whole number of at least 1."),
    ("data: {buckets: [5]}", "data.buckets[0] is 5 (FILE); give a text."),
    ("data: {buckets: 832x480x81}", 'data.buckets is "832x480x81" (FILE); give a list such as [832x480x81], or null.'),
    ("data: {buckets: [832x480]}",
     "data.buckets (FILE) has '832x480', which is not a bucket; give WIDTHxHEIGHTxFRAMES such as 832x480x81, "
     "or auto."),
    ("sigma: {pattern: tasks, tasks: {imag-to-video: 1}}",
     "sigma.tasks has the unknown key 'imag-to-video' (FILE); did you mean image-to-video?"),
    ("sigma: {pattern: tasks, tasks: {extension: 2}}", "sigma.tasks.extension is 2 (FILE); give a number from 0 to 1."),
    ("sigma: {pattern: tasks, tasks: {extension: 0.2}}",
     "sigma (FILE) has tasks whose probabilities add up to 0.2; make them add up to 1."),
    ("sigma: {p: 0.2}", "sigma (FILE) sets p, which only pattern ptss uses; set pattern to ptss or leave p out."),
    ("sigma: {shift: 3}",
     "sigma (FILE) sets shift, which only law shifted uses; set law to shifted or leave shift out."),
    ("sigma: {low: 0.5, high: 0.5}", "sigma (FILE) has low 0.5 and high 0.5; make low smaller than high."),
    ("model: {full_range: false}",
     "model.full_range is false but model.expert is null; give the expert, high or low (FILE)."),
    ("model: {full_range: false, expert: low}\nsigma: {low: 0.5, high: 0.9}",
     "sigma.low 0.5 and sigma.high 0.9 are outside the range of the low-noise expert, 0 to 0.875; leave them out "
     "or give values in this range (FILE)."),
    ("track: {loggers: [tensorbord]}", 'track.loggers[0] is "tensorbord" (FILE); give tensorboard, trackio or wandb.'),
    ("validate: {sigmas: [0.5, 0.1, 0.5]}", "validate.sigmas (FILE) has a level twice; give each level once."),
    ("validate: {sigmas: [0]}", "validate.sigmas[0] is 0 (FILE); give a number above 0 and at most 1."),
    ("lora: {targets: []}", "lora.targets is [] (FILE); give a list of module names."),
    ("train: {lr: -1, steps: 0, seed: x}",
     "train.steps is 0 (FILE); give a whole number of at least 1 (train.lr, train.seed are also wrong)."),
    ("train: {steps: 3, steps: 4}", "FILE is not valid YAML: 'steps' occurs twice in line 1; correct the file."),
    ("train: [1", "FILE is not valid YAML: expected ',' or ']', but got '<stream end>' in line 1; correct the file."),
    ("- 3", "FILE contains a list instead of sections; write a section such as 'train:'."),
    ("5: 3", "FILE is not valid YAML: the key 5 is not a text in line 1; correct the file."),
]  # fmt: skip


@pytest.mark.parametrize(("text", "sentence"), REFUSED, ids=[text.replace("\n", " ") for text, _ in REFUSED])
def test_what_is_wrong_is_said_in_one_sentence_with_its_place(tmp_path: Path, text: str, sentence: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(InputError) as caught:
        read(file, None, {})
    assert str(caught.value) == sentence.replace("FILE", str(file))


@pytest.mark.parametrize(
    ("preset", "typed", "sentence"),
    [
        ("tinny", {}, "There is no preset 'tinny'; did you mean tiny?"),
        ("?", {}, "There is no preset '?'; give one of tiny, wan21-1.3b, wan21-14b, wan22-a14b, wan22-5b, "
     "wan21-14b-24gb, wan21-14b-12gb, wan22-5b-16gb or paper."),
        ("tiny", {"train.lrr": "1"}, "There is no setting 'lrr' in the section train (the command line); did you mean "
         "train.lr?"),
        (None, {"data.folders": "clips=2,clips=3"}, "clips=2,clips=3 (the command line) has clips twice; "
         "give it once."),
        (None, {"train.lr": "fast"}, 'train.lr is "fast" (the command line); give a number above 0.'),
    ],
)  # fmt: skip
def test_the_command_line_and_presets_are_places_too(preset: str | None, typed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}$"):
        read(None, preset, typed)


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"There is no settings file .*none\.yaml"):
        read(tmp_path / "none.yaml", None, {})
    with pytest.raises(InputError, match=f"is a folder, .* as --data {re.escape(str(tmp_path))}, or a .yaml"):
        read(tmp_path, None, {})
    with pytest.raises(InputError, match=r"neither \.yaml nor \.toml"):
        read(written(tmp_path, "{}", "a.json"), None, {})
    with pytest.raises(InputError, match=r"is not valid TOML: invalid value"):
        read(written(tmp_path, "lr = ", "a.toml"), None, {})
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read(tmp_path / "b.yaml", None, {})


@pytest.mark.parametrize("name", ["a.toml", "a.yaml"])
@pytest.mark.parametrize("path", [r"C:\clips\new", r"D:\Users\me", r"C:\temp", r"\\nas\new", r"clips\data"])
def test_a_windows_path_in_double_quotes_has_a_remedy(tmp_path: Path, name: str, path: str) -> None:
    """As an escape, `\\t` would be a tab in silence, and `\\U` an error that does not mention paths."""
    form = "[data]\npath = {}\n" if name.endswith("toml") else "data:\n  path: {}\n"
    with pytest.raises(InputError) as caught:
        read(written(tmp_path, form.format(f'"{path}"'), name), None, {})
    slashes = path.replace("\\", "/")
    assert str(caught.value).endswith(
        f'{name} has "{path}" in line 2, and a backslash in double quotes begins an escape; write the path in single '
        f"quotes ('{path}') or with slashes (\"{slashes}\")."
    )
    for quoted, meant in (
        (f"'{path}'", path),
        (f'"{slashes}"', slashes),
        ('"{}"'.format(path.replace("\\", "\\\\")), path),
    ):
        assert read(written(tmp_path, form.format(quoted), name), None, {}).data.path == meant


def test_a_relative_path_with_an_escape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"data.cache \(.*a.toml\) is 'runs\\new': a backslash in double quotes begins"
    ):
        read(written(tmp_path, '[data]\ncache = "runs\\new"\n', "a.toml"), None, {})
    with pytest.raises(InputError, match=r"data.path \(.*a.toml\) is 'clips\\new': a backslash"):
        read(written(tmp_path, '[data]\npath = "clips\\new"\n', "a.toml"), None, {})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "data:\n  prefix: ohwx\n  folders:\n  - {path: a, repeats: 2, prefix: sks}\n  - b\n"),
        ("a.toml", "[data]\nprefix = 'ohwx'\n[[data.folders]]\npath = 'a'\nrepeats = 2\nprefix = 'sks'\n"
                   "[[data.folders]]\npath = 'b'\n"),
    ],
)  # fmt: skip
def test_several_folders_in_every_form(tmp_path: Path, name: str, text: str) -> None:
    def told(config: Config) -> list[tuple[str, int, str | None]]:
        return [(folder.path, folder.repeats, folder.prefix) for folder in config.data.sources]

    config = read(written(tmp_path, text, name), None, {})
    assert told(config) == [("a", 2, "sks"), ("b", 1, "ohwx")]
    again = read(written(tmp_path, config.to_yaml(), "b.yaml"), None, {})
    assert again == config
    assert told(read(None, None, {"data.folders": "a=2,b=1"})) == [("a", 2, None), ("b", 1, None)]
    assert told(read(None, None, {"data.folders": "a,b"})) == [("a", 1, None), ("b", 1, None)]
    assert told(read(None, None, {"data.folders": "[{path: a, repeats: 2}]"})) == [("a", 2, None)]
    assert told(read(None, None, {"data.path": "a", "data.prefix": "sks"})) == [("a", 1, "sks")]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"folders": [{"path": "a", "num_repeats": 2}]}, "data.folders (the command line) has {'path': 'a', "
         "'num_repeats': 2} as item 1 (num_repeats is 2); give a list such as [{path: clips, repeats: 2, prefix: sks}, "
         "{path: more}], or clips=2,more=1."),
        ({"folders": {"a": 0}}, "as item 1 (repeats is 0); give a list such as"),
        ({"folders": [{"repeats": 2}]}, "as item 1 (path is missing); give a list such as"),
        ({"folders": ["a", "a"]}, "data.folders (the command line) has a path twice; give it once, with repeats."),
        ({"folders": 3}, "data.folders is 3 (the command line); give a list of folders, or null."),
        ({"folders": ["a"], "path": "b"}, "data (the command line) has both path and folders; give one of them."),
        ({"validation": "a", "held_out": 2}, "has both validation and held_out; leave held_out out."),
        ({"held_out": 1.0}, "data.held_out (the command line) is 1.0; give a share above 0 and below 1, or a"),
        ({"held_out": -1}, "is -1; give a share above 0 and below 1, or a whole number of clips."),
        ({"captions": "many"}, 'data.captions is "many" (the command line); give one or variants.'),
        ({"buckets": ["auto", "big"]}, "has 'big', which is not a bucket; give WIDTHxHEIGHTxFRAMES such as 832x480x"),
    ],
)  # fmt: skip
def test_wrong_sources_are_one_sentence(data: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        read(None, None, {"data": data})


def test_each_preview_prompt_has_its_own_picture() -> None:
    config = read(None, None, {"preview": {"prompts": ["a", "b"], "pictures": ["1.png", "2.png"]}})
    assert config.preview.pictures == [Path("1.png"), Path("2.png")]
    for pictures in (["1.png"], []):
        with pytest.raises(InputError, match="pictures and 2 prompts; give one picture for each prompt"):
            read(None, None, {"preview": {"prompts": ["a", "b"], "pictures": pictures}})


def test_settings_of_the_data_that_are_not_used_change_no_older_run() -> None:
    """A run that was made before they existed has no value for them, and resumes."""
    assert not {"data.folders", "data.prefix", "data.captions", "data.uncaptioned"} & set(Config().decisive())
    new = read(None, None, {"data.captions": "variants", "data.prefix": "sks", "data.uncaptioned": "true"})
    assert differences(Config(), new) == [
        'data.prefix was null and is "sks"', 'data.captions was null and is "variants"',
        "data.uncaptioned was null and is true",
    ]  # fmt: skip
    assert read(None, None, {"data.held_out": "0.25"}).data.held_out == 0.25
    assert read(None, None, {"data.buckets": "auto"}).data.buckets == ["auto"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize(("name", "text"), [("a.toml", "[train]\r\nlr = 0.5\r\n"), ("a.yaml", "train: {lr: 0.5}\r\n")])
def test_a_byte_order_mark_is_no_part_of_the_settings(tmp_path: Path, encoding: str, name: str, text: str) -> None:
    """Notepad and PowerShell write one."""
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert read(tmp_path / name, None, {}).train.lr == 0.5


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValidationError):
        Config().train.lr = 1.0  # type: ignore[misc]


# ------------------------------------------------------------------------------------------------------- written down

texts = st.text(max_size=20)
paths = texts.filter(lambda text: not any(ord(letter) < 32 for letter in text))
shares = st.floats(0, 1)
floats = st.floats(1e-12, 1e12)


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


trees = some(
    model=some(source=paths, expert=st.sampled_from([None, "high", "low"]), boundary=st.floats(0.01, 0.99)),
    data=some(
        path=st.none() | paths,
        cache=paths.filter(bool),
        buckets=st.none() | st.just(["832x480x81", "64x64x1"]),
        fps=st.none() | floats,
        held_out=st.none() | st.integers(0, 10**9),
    ),
    sigma=st.one_of(
        some(high=st.floats(0.1, 1)).map(lambda sigma: {"law": "shifted", "shift": 3.0, "levels": 7, **sigma}),
        st.builds(lambda p: {"pattern": "ptss", "p": p, "weighting": "official"}, shares),
        st.builds(lambda p: {"pattern": "tasks", "tasks": {"extension": p, "independent": 1 - p}}, shares),
    ),
    lora=st.none() | some(rank=st.integers(1, 999), alpha=st.none() | floats, targets=st.lists(texts, min_size=1)),
    train=some(
        lr=floats,
        betas=st.tuples(shares, shares).filter(lambda pair: max(pair) < 1),
        ema=st.none() | st.just("post-hoc") | st.floats(0.01, 0.999),
        clip=st.none() | floats,
        seed=st.integers(0, 2**63 - 1),
        schedule=st.sampled_from(["constant", "cosine", "linear"]),
    ),
    validate=some(sigmas=st.lists(st.floats(0.001, 1), min_size=1, unique=True)),
    preview=some(prompts=st.none() | st.lists(texts), every=st.integers(0, 9)),
    track=some(currency=texts, price=st.none() | st.floats(0, 1e9)),
)


@given(tree=trees)
@settings(max_examples=30, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
def test_written_settings_are_read_back_identically(
    tree: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = Config.model_validate(tree)
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    config.write(path)
    back = read(path, None, {})
    assert back == config
    assert back.plain() == config.plain()
    assert back.fingerprint() == config.fingerprint()
    assert differences(config, back) == []
    assert Config.model_validate(config.plain()) == config
    if all(text.isprintable() for text in re.findall(r"[^\n]", config.to_yaml())):
        assert set(yaml.safe_load(config.to_yaml())) == set(SECTIONS)


def test_words_that_look_like_something_else_stay_words(tmp_path: Path) -> None:
    words = [
        "1e-4",
        "no",
        "null",
        "~",
        "",
        "true",
        "1:30",
        "a: b",
        "- x",
        "#",
        "'",
        "\n",
        "é",
        " padded ",
        "2020-01-01",
    ]
    config = Config.model_validate({"preview": {"prompts": words}})
    assert read(written(tmp_path, config.to_yaml()), None, {}).preview.prompts == words
    assert yaml.safe_load(config.to_yaml())["preview"]["prompts"] == words


# ------------------------------------------------------------------------------------------------------ what decides


@pytest.mark.parametrize(
    "typed",
    [{"data.cache": "x"}, {"train.workers": "7"}, {"save.every": "3"}, {"validate.clips": "3"}, {"preview.every": "3"},
     {"track.price": "3"}, {"train.gradient_checkpointing": "true"}, {"train.steps": "7"}],
)  # fmt: skip
def test_what_does_not_decide_the_weights_does_not_change_the_fingerprint(typed: dict[str, str]) -> None:
    assert read(None, None, typed).fingerprint() == Config().fingerprint()
    assert differences(Config(), read(None, None, typed)) == []


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ({"train.lr": "1e-3"}, "train.lr was 0.0001 and is 0.001"),
        ({"train.seed": "1"}, "train.seed was 0 and is 1"),
        ({"model.source": "x"}, 'model.source was "tiny-base" and is "x"'),
        ({"lora.rank": "4"}, "lora.rank was 32 and is 4"),
        ({"sigma.law": "shifted"}, 'sigma.law was "uniform" and is "shifted"'),
        ({"data.held_out": "3"}, "data.held_out was null and is 3"),
    ],
)
def test_what_decides_the_weights_is_named(typed: dict[str, str], line: str) -> None:
    changed = read(None, None, typed)
    assert differences(Config(), changed) == [line]
    assert changed.fingerprint() != Config().fingerprint()


def test_the_number_of_steps_decides_only_where_the_rate_decays() -> None:
    short, long = (read(None, None, {"train.schedule": "cosine", "train.steps": steps}) for steps in ("5", "6"))
    assert differences(short, long) == ["train.steps was 5 and is 6"]
    assert differences(Config(), short) == ['train.schedule was "constant" and is "cosine"']
    assert any(line.startswith("lora") for line in differences(Config(), read(None, None, {"lora": "null"})))


@pytest.mark.parametrize(("expert", "span"), [("high", (0.875, 1.0)), ("low", (0.0, 0.875))])
def test_a_restricted_expert_gets_its_side_of_the_boundary(
    tmp_path: Path, expert: str, span: tuple[float, float]
) -> None:
    typed = {"model.expert": expert, "model.full_range": "false"}
    config = read(None, None, typed)
    assert (config.sigma.low, config.sigma.high) == span
    assert read(written(tmp_path, config.to_yaml()), None, {}) == config
    assert (read(None, None, {"model.expert": expert}).sigma.low, Config().sigma.high) == (0.0, 1.0)


# ------------------------------------------------------------------------------------------------------------- presets


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_settings_and_say_what_they_cost(name: str) -> None:
    config, preset = read(None, name, {}), PRESETS[name]
    assert config != Config()
    assert "GB" in preset.memory
    assert re.search(r"\d (h|min)", preset.time)
    assert "Computed" in preset.note or "Measured" in preset.note


def test_the_papers_preset_is_the_papers() -> None:
    config = read(None, "paper", {})
    assert config.lora is not None
    assert (config.lora.rank, config.lora.alpha, config.train.steps, config.clips_per_step) == (512, 512, 900, 8)
    assert (config.train.lr, config.train.schedule, config.train.warmup) == (1e-5, "constant", 0)
    assert (config.sigma.pattern, config.sigma.law, config.sigma.weighting) == ("independent", "uniform", "none")
    assert config.train.caption_dropout == 0
