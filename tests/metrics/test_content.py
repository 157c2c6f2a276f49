from pathlib import Path

import numpy as np
import pytest

from src.metrics.content import NONE, PARTS, ContentWords, content_recall
from src.metrics.named import split_words

LIST = Path(__file__).parents[2] / "src" / "metrics" / "content_words.tsv"
COCO = """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag,
tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis
racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, oranges, broccoli, carrot, hot dog,
pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard,
cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier,
toothbrush"""


@pytest.fixture(scope="module")
def listed() -> ContentWords:
    return ContentWords.load()


def rows() -> list[list[str]]:
    lines = LIST.read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines if not line.startswith("#")]


def said(listed: ContentWords, caption: str) -> dict[str, set[str]]:
    """Only the parts of which something is said."""
    return {part: concepts for part, concepts in listed.said(caption).items() if concepts}


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        (
            "Two young Guys, with shaggy hair, look at their hands.",
            {
                "counts": {"two"},
                "attributes": {"young", "furry"},
                "objects": {"man", "hair", "hand"},
                "actions": {"look"},
            },
        ),
        ("three women ran", {"counts": {"three"}, "objects": {"woman"}, "actions": {"run"}}),
        ("A LITTLE GIRL IS RUNNING", {"attributes": {"small"}, "objects": {"girl"}, "actions": {"run"}}),
        ("the dog 's gray ball", {"objects": {"dog", "ball"}, "colours": {"grey"}}),
        ("the dog's gray ball.", {"objects": {"dog", "ball"}, "colours": {"grey"}}),
        ("a red-haired lady", {"objects": {"hair", "woman"}, "colours": {"red"}}),
        ("in a T-shirt", {"objects": {"shirt"}}),
        ("in a t shirt", {"objects": {"shirt"}}),
        ("a hot dog", {"objects": {"hot dog"}}),
        ("a hot-dog beside a dog", {"objects": {"hot dog", "dog"}}),
        ("a hot , dog", {"objects": {"dog"}}),
        ("a stop sign", {"objects": {"stop sign"}}),
        ("a fire hydrant on fire", {"objects": {"fire hydrant", "fire"}}),
        ("a golden retriever", {"objects": {"dog"}}),
        ("a two year old child", {"counts": {"two"}, "objects": {"child"}}),
        ("oranges and an orange", {"objects": {"orange"}, "colours": {"orange"}}),
        ("swings on the swing", {"actions": {"swing"}, "objects": {"swing"}}),
        ("a", {}),
        ("", {}),
    ],
)
def test_english(listed, caption, expected):
    assert said(listed, caption) == expected


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("一只黑狗在草地上奔跑。", {"colours": {"black"}, "objects": {"dog", "grass"}, "actions": {"run"}}),
        ("一 只 黑狗 在 草地 上 奔跑 。", {"colours": {"black"}, "objects": {"dog", "grass"}, "actions": {"run"}}),
        ("两个男孩踢足球", {"counts": {"two"}, "objects": {"boy", "soccer"}, "actions": {"kick"}}),
        ("小男孩", {"attributes": {"small"}, "objects": {"boy"}}),
        ("一个男人独自骑自行车", {"counts": {"one"}, "objects": {"man", "bicycle"}, "actions": {"ride"}}),
        ("热狗", {"objects": {"hot dog"}}),
        ("人行道上的人", {"objects": {"sidewalk", "person"}}),
        ("车站", {"objects": {"station"}}),
        ("站在车上", {"objects": {"car"}, "actions": {"stand"}}),
        ("白天的水果", {"objects": {"fruit"}}),
        ("一件红T恤", {"colours": {"red"}, "objects": {"shirt"}}),
        ("滑雪橇", {"objects": {"sled"}}),
        ("狗dog", {"objects": {"dog"}}),
    ],
)
def test_chinese_raw_or_split(listed, caption, expected):
    assert said(listed, caption) == expected


def test_every_part_is_answered_for(listed):
    assert listed.said("") == {part: set() for part in PARTS}
    assert list(listed.said("two dogs")) == list(PARTS)


def user_list(folder: Path, *lines: str) -> Path:
    path = folder / "mine.tsv"
    path.write_bytes(("\n".join(lines) + "\n").encode())
    return path


def test_the_longest_goes_first_and_what_says_nothing_is_taken_too(tmp_path):
    words = ContentWords.load(
        user_list(
            tmp_path,
            "objects\tdog\tdog\t狗",
            "objects\thot dog\thot dog\t热狗",
            "objects\tbowl\tdog food bowl\t-",
            "none\tweather\thot day, dog days\t-",
        )
    )
    assert words.said("a hot dog food bowl")["objects"] == {"bowl"}
    assert words.said("dog days")["objects"] == set()
    assert words.said("the dog days of a dog")["objects"] == {"dog"}
    assert words.concepts == {"objects": ["dog", "hot dog", "bowl"]} | {part: [] for part in PARTS[1:]}


def test_recall_by_hand(listed):
    references = {
        "1": ["a black dog runs", "a dog runs on grass", "two dogs play on the grass"],
        "2": ["a red bus"],
        "3": ["a man", "nothing at all"],
        "4": ["not captioned"],
    }
    captions = {"2": "a bus and a dog", "1": "black dogs sit on the lawn", "3": "a man"}
    # Two say dog, grass and run in the first; black, two and play are one person's word. The second has one reference.
    recall = content_recall(captions, references, listed)
    assert {part: counts.tolist() for part, counts in recall.items()} == {
        "objects": [[1, 1], [2, 2], [0, 0]],
        "colours": [[0, 1], [0, 0], [0, 0]],
        "attributes": [[0, 0], [0, 0], [0, 0]],
        "counts": [[0, 0], [0, 0], [0, 0]],
        "actions": [[0, 0], [0, 1], [0, 0]],
    }
    assert list(recall) == list(PARTS)
    assert all(np.issubdtype(counts.dtype, np.integer) for counts in recall.values())


def test_a_word_said_twice_in_one_reference_is_one_persons(listed):
    counts = content_recall({"1": "a dog"}, {"1": ["dog dog puppy", "a cat"]}, listed)
    assert counts["objects"].tolist() == [[0, 0]]


def test_two_languages_of_a_concept_are_one(listed):
    counts = content_recall({"1": "一只狗"}, {"1": ["a dog", "some puppies"]}, listed)
    assert counts["objects"].tolist() == [[1, 1]]


def test_no_captions_and_captions_without_references(listed):
    assert {part: counts.shape for part, counts in content_recall({}, {}, listed).items()} == dict.fromkeys(
        PARTS, (0, 2)
    )
    for references in ({}, {"7": []}):
        with pytest.raises(ValueError, match="1 captioned images, such as \\['7'\\]"):
            content_recall({"7": "a dog"}, references, listed)


def test_the_list_says_each_form_once(listed):
    forms = [split_words(form) for row in rows() for cell in row[2:] if cell != "-" for form in cell.split(", ")]
    assert len(forms) == len(set(forms)) > 1000


def test_the_list_is_tidy():
    for row in rows():
        assert len(row) == 4
        assert row[0] in (*PARTS, NONE)
        for cell in row:
            assert cell == " ".join(cell.split())
            assert cell == ", ".join(form.strip() for form in cell.split(","))
        assert row[2].isascii() and row[2] == row[2].lower()
        assert not any(form.isascii() for form in row[3].split(", ") if form != "-")


def test_the_list_is_sorted(listed):
    assert list(dict.fromkeys(row[0] for row in rows())) == [*PARTS, NONE]
    for part in (*PARTS, NONE):
        concepts = [row[1] for row in rows() if row[0] == part]
        assert concepts == (sorted(concepts) if part != "counts" else listed.concepts["counts"])
    assert ", ".join(listed.concepts["counts"]) == "one, two, three, four, five, six, seven, eight, nine, ten, many"


def test_concepts_are_in_both_languages_unless_a_comment_names_them():
    comments = [line for line in LIST.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    for row in rows():
        if row[0] != NONE and "-" in row[2:]:
            assert any(f'"{row[1]}' in comment for comment in comments), row


def test_colours_and_coco_s_categories_are_listed(listed):  # COCO's "orange" is read as the colour
    assert len(listed.concepts["colours"]) == 11
    names = [" ".join(name.split()) for name in COCO.split(",")]
    assert len(names) == 80
    for name in names:
        assert listed.said(name)["objects"], name


def test_a_list_of_ones_own(tmp_path):
    path = user_list(tmp_path, "\ufeff# mine", "", " ", "colours\tblack\tblack , BLACKISH\t黑\r", "objects\tcat\t-\t猫")
    words = ContentWords.load(path)
    assert words.said("a Blackish 猫") == {
        "objects": {"cat"},
        "colours": {"black"},
        "attributes": set(),
        "counts": set(),
        "actions": set(),
    }
    assert words.said("cat")["objects"] == set()


GOOD = "objects\tdog\tdog, dogs\t狗"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("objects\tcat\tcat", "divided by tabs.*it has 3 columns: "),
        ("objects\tcat\tcat\t猫\tle chat", "5 columns"),
        ("objects  cat  cat  猫", "divided by tabs.*1 columns"),
        ("objects\tcat\tcat\t", "with - for a language without a form; it has 4 columns, some empty"),
        ("object\tcat\tcat\t猫", "no part 'object'; name one of objects, colours"),
        ("objects\tdog\thound\t-", "objects has 'dog' in line 2 too; join"),
        ("objects\tcat\t-\t-", "'cat' has no form in either language"),
        ("objects\tcat\tcat,, cats\t猫", "'' is no form; divide forms by single commas"),
        ("objects\tcat\tcat, -\t猫", "'-' is no form"),
        ("objects\tcat\tcat\t猫，猫咪", "'猫，猫咪' is no form; divide forms by single commas"),
        ("objects\tcat\tcat, DOGS\t猫", "'DOGS' is listed in line 2 too; keep one"),
        ("colours\tdog\t-\t狗", "'狗' is listed in line 2 too"),
        ("objects\tcat\thouse-cat, house cat\t猫", "'house cat' is listed in line 4 too"),
    ],
)
def test_what_is_wrong_with_a_row(tmp_path, row, message):
    with pytest.raises(ValueError, match=rf"mine\.tsv, line 4.*{message}"):
        ContentWords.load(user_list(tmp_path, "# mine", GOOD, "", row))


def test_another_encoding(tmp_path):
    path = tmp_path / "mine.tsv"
    path.write_bytes(f"{GOOD}\nobjects\tcafé\tcafé\t咖啡馆\n".encode("gb18030"))
    with pytest.raises(ValueError, match=r"mine\.tsv, line 1 is not UTF-8: save"):
        ContentWords.load(path)
