"""What the built-in scenes show, and the sentences that say so, in English and Chinese.

No name is part of another one, so that finding one in a caption is never a chance hit: there is no "hot dog"
beside "dog", and the cat is 小猫, as 猫 is part of 熊猫 (panda).
"""

import functools
import random
from typing import Literal, NamedTuple

Language = Literal["en", "zh"]
Relation = Literal["", "left", "above"]


class Noun(NamedTuple):
    """One drawing. `chinese` is empty where the emoji package's (CLDR) name is a good common noun."""

    emoji: str
    name: str
    plural: str
    measure: str  # the Chinese measure word
    chinese: str = ""


class Background(NamedTuple):
    """`where`: prepositional phrases; `chinese_where`: locative phrases."""

    name: str
    where: tuple[str, ...]
    chinese: str
    chinese_where: tuple[str, ...]


class Scene(NamedTuple):
    """A description: `number` of one noun, or (number 1) the first noun `relation` the second.

    Only "left" (of) and "above" occur: "B right of A" is the same description as "A left of B".
    """

    nouns: tuple[str, ...]
    number: int
    relation: Relation
    background: str


NOUNS: dict[str, Noun] = {
    noun.name: noun
    for noun in (
        # animals
        Noun("🐕", "dog", "dogs", "只"),
        Noun("🐈", "cat", "cats", "只", "小猫"),
        Noun("🐄", "cow", "cows", "头"),
        Noun("🐖", "pig", "pigs", "头"),
        Noun("🐑", "sheep", "sheep", "只", "绵羊"),
        Noun("🦒", "giraffe", "giraffes", "只"),
        Noun("🐘", "elephant", "elephants", "头"),
        Noun("🐇", "rabbit", "rabbits", "只"),
        Noun("🦇", "bat", "bats", "只"),
        Noun("🐼", "panda", "pandas", "只"),
        Noun("🐓", "rooster", "roosters", "只"),
        Noun("🦆", "duck", "ducks", "只"),
        Noun("🦉", "owl", "owls", "只"),
        Noun("🦩", "flamingo", "flamingos", "只"),
        Noun("🦚", "peacock", "peacocks", "只"),
        Noun("🐧", "penguin", "penguins", "只"),
        Noun("🐸", "frog", "frogs", "只"),
        Noun("🐢", "turtle", "turtles", "只", "乌龟"),
        Noun("🐍", "snake", "snakes", "条"),
        Noun("🐋", "whale", "whales", "头"),
        Noun("🐟", "fish", "fish", "条", "小鱼"),
        Noun("🐙", "octopus", "octopuses", "只"),
        Noun("🐌", "snail", "snails", "只"),
        Noun("🦋", "butterfly", "butterflies", "只"),
        Noun("🐝", "bee", "bees", "只"),
        Noun("🐞", "ladybug", "ladybugs", "只"),
        Noun("🕷", "spider", "spiders", "只"),
        Noun("🦀", "crab", "crabs", "只", "螃蟹"),
        Noun("🐿", "squirrel", "squirrels", "只"),
        Noun("🦌", "deer", "deer", "头", "小鹿"),
        Noun("🦓", "zebra", "zebras", "匹"),
        Noun("🦊", "fox", "foxes", "只"),
        Noun("🦁", "lion", "lions", "头"),
        # fruit, vegetables and other food
        Noun("🍎", "apple", "apples", "个", "苹果"),
        Noun("🍌", "banana", "bananas", "根"),
        Noun("🍉", "watermelon", "watermelons", "块"),
        Noun("🍊", "orange", "oranges", "个"),
        Noun("🍋", "lemon", "lemons", "个"),
        Noun("🍍", "pineapple", "pineapples", "个"),
        Noun("🍐", "pear", "pears", "个"),
        Noun("🍓", "strawberry", "strawberries", "颗"),
        Noun("🍅", "tomato", "tomatoes", "个"),
        Noun("🥑", "avocado", "avocados", "个", "牛油果"),
        Noun("🍆", "eggplant", "eggplants", "个"),
        Noun("🥕", "carrot", "carrots", "根"),
        Noun("🍄", "mushroom", "mushrooms", "个"),
        Noun("🥨", "pretzel", "pretzels", "个"),
        Noun("🍔", "hamburger", "hamburgers", "个"),
        Noun("🍕", "pizza", "pizzas", "块"),
        Noun("🎂", "cake", "cakes", "个", "蛋糕"),
        Noun("🍦", "ice cream", "ice creams", "个", "冰淇淋"),
        Noun("🍩", "donut", "donuts", "个"),
        Noun("🍪", "cookie", "cookies", "块"),
        Noun("☕", "cup", "cups", "个", "杯子"),
        # vehicles
        Noun("🚗", "car", "cars", "辆"),
        Noun("🚜", "tractor", "tractors", "辆"),
        Noun("🚲", "bicycle", "bicycles", "辆"),
        Noun("🚂", "train", "trains", "列", "火车"),
        Noun("⛵", "sailboat", "sailboats", "艘"),
        Noun("🚁", "helicopter", "helicopters", "架"),
        Noun("✈", "airplane", "airplanes", "架"),
        Noun("🚀", "rocket", "rockets", "枚"),
        # instruments
        Noun("🎸", "guitar", "guitars", "把"),
        Noun("🎻", "violin", "violins", "把"),
        Noun("🎺", "trumpet", "trumpets", "把"),
        Noun("🥁", "drum", "drums", "面"),
        Noun("🎹", "piano", "pianos", "架", "钢琴"),
        Noun("🎷", "saxophone", "saxophones", "把", "萨克斯"),
        # things
        Noun("⚽", "football", "footballs", "个"),
        Noun("🎈", "balloon", "balloons", "个"),
        Noun("🎁", "gift", "gifts", "份"),
        Noun("☂", "umbrella", "umbrellas", "把", "雨伞"),
        Noun("📷", "camera", "cameras", "台"),
        Noun("☎", "telephone", "telephones", "部"),
        Noun("🔑", "key", "keys", "把"),
        Noun("🔒", "lock", "locks", "把", "锁"),
        Noun("🪑", "chair", "chairs", "把"),
        Noun("🕯", "candle", "candles", "根"),
        Noun("📖", "book", "books", "本", "书"),
        Noun("✏", "pencil", "pencils", "支"),
        Noun("🎩", "hat", "hats", "顶", "帽子"),
        Noun("🌵", "cactus", "cacti", "棵"),
        Noun("🌻", "sunflower", "sunflowers", "朵"),
        Noun("🌹", "rose", "roses", "朵"),
        Noun("🌴", "palm tree", "palm trees", "棵"),
        Noun("⛄", "snowman", "snowmen", "个"),
        Noun("🔪", "knife", "knives", "把"),
        Noun("🏠", "house", "houses", "座"),
        Noun("🎃", "pumpkin", "pumpkins", "个", "南瓜"),
        Noun("🤖", "robot", "robots", "个"),
        Noun("👑", "crown", "crowns", "顶"),
        Noun("💎", "diamond", "diamonds", "颗", "钻石"),
        Noun("🧸", "teddy bear", "teddy bears", "个"),
        Noun("⏰", "clock", "clocks", "个"),
    )
}

BACKGROUNDS: dict[str, Background] = {
    background.name: background
    for background in (
        Background("grass", ("on the grass", "on grass"), "草地", ("草地上",)),
        Background("brick wall", ("in front of a brick wall", "against a brick wall"), "砖墙", ("砖墙前", "砖墙前面")),
        Background("gravel", ("on the gravel", "on gravel"), "碎石地", ("碎石地上",)),
        Background("blue sky", ("in front of a blue sky", "against the blue sky"), "蓝天", ("蓝天下",)),
        Background("night sky", ("in front of a night sky", "against the night sky"), "夜空", ("夜空下",)),
        Background("sand", ("on the sand", "on sand"), "沙地", ("沙地上",)),
        Background("snow", ("on the snow", "in the snow"), "雪地", ("雪地上", "雪地里")),
        Background("water", ("on the water", "in the water"), "水面", ("水面上",)),
        Background("wooden floor", ("on a wooden floor", "on the wooden floor"), "木地板", ("木地板上",)),
        Background("tiles", ("on the tiles", "on tiles"), "瓷砖", ("瓷砖上",)),
        Background("sunset", ("in front of a sunset", "against the sunset"), "晚霞", ("晚霞中",)),
        Background("red curtain", ("in front of a red curtain", "against a red curtain"), "红幕布", ("红幕布前",)),
    )
}

# Every template names all that the scene holds, so that any caption alone can be checked against it.
# {a}, {b}: objects with article (Chinese: number and measure word); {n}, {m}: bare; {where}: the background.
_ENGLISH = {
    "one": (
        "{a} {where}",
        "there is {a} {where}",
        "{where} there is {a}",
        "one {n} {where}",
        "a single {n} {where}",
        "a picture of {a} {where}",
        "{a} can be seen {where}",
        "this is {a} {where}",
        "the {n} is {where}",
    ),
    "two": (
        "{a} {where}",
        "there are {a} {where}",
        "{where} there are {a}",
        "a picture of {a} {where}",
        "{a} can be seen {where}",
        "{a} side by side {where}",
        "{a} are {where}",
        "these are {a} {where}",
    ),
    "three": (
        "{a} {where}",
        "there are {a} {where}",
        "{where} there are {a}",
        "a picture of {a} {where}",
        "{a} can be seen {where}",
        "a group of {a} {where}",
        "{a} are {where}",
        "these are {a} {where}",
    ),
    "pair": (
        "{a} {relation} {b} {where}",
        "there is {a} {relation} {b} {where}",
        "{a} is {relation} {b} {where}",
        "the {n} is {relation} the {m} {where}",
        "{where} {a} is {relation} {b}",
        "{a} {side} and {b} {other_side} {where}",
        "{where} there is {a} {relation} {b}",
        "a picture of {a} {relation} {b} {where}",
    ),
}
_CHINESE = {
    "one": (
        "{where}有{a}",
        "{a}在{where}",
        "{where}的{a}",
        "图中{where}有{a}",
        "这是{where}的{a}",
        "{a}，背景是{background}",
        "画面里有{a}，背景是{background}",
        "可以看到{where}有{a}",
        "{where}只有{a}",
    ),
    "two": (
        "{where}有{a}",
        "{a}在{where}",
        "{where}的{a}",
        "图中{where}有{a}",
        "这是{where}的{a}",
        "{a}，背景是{background}",
        "画面里有{a}，背景是{background}",
        "可以看到{where}有{a}",
        "{a}并排在{where}",
    ),
    "three": (
        "{where}有{a}",
        "{a}在{where}",
        "{where}的{a}",
        "图中{where}有{a}",
        "这是{where}的{a}",
        "{a}，背景是{background}",
        "画面里有{a}，背景是{background}",
        "可以看到{where}有{a}",
        "{where}一共有{a}",
    ),
    "pair": (
        "{a}在{b}的{relation}，背景是{background}",
        "{where}，{a}在{b}的{relation}",
        "{n}在{m}的{relation}，背景是{background}",
        "{where}，{b}的{relation}有{a}",
        "{where}，{side}是{a}，{other_side}是{b}",
        "图中{a}在{b}的{relation}，背景是{background}",
        "{side}是{a}，{other_side}是{b}，背景是{background}",
        "{where}有{a}，在{b}的{relation}",
    ),
}
# (first noun named first, second noun named first)
_RELATIONS = {
    "en": {
        "left": (("to the left of", "on the left of"), ("to the right of", "on the right of")),
        "above": (("above", "over"), ("below", "under")),
    },
    "zh": {"left": (("左边", "左侧"), ("右边", "右侧")), "above": (("上面", "上方"), ("下面", "下方"))},
}
_SIDES = {
    "en": {"left": ("on the left", "on the right"), "above": ("at the top", "at the bottom")},
    "zh": {"left": ("左边", "右边"), "above": ("上面", "下面")},
}
_NUMBERS = {"en": {2: "two", 3: "three"}, "zh": {1: "一", 2: "两", 3: "三"}}


@functools.cache
def emoji_data(noun: Noun) -> dict[str, str]:
    """CLDR names of the drawing by language ("en", "zh"), from the emoji package."""
    import emoji

    emoji.config.load_language("zh")
    entry = emoji.EMOJI_DATA.get(noun.emoji + "\ufe0f") or emoji.EMOJI_DATA[noun.emoji]
    return {language: str(entry[language]).strip(":").replace("_", " ") for language in ("en", "zh")}


def forms(noun: Noun, language: Language) -> list[str]:
    """The words that name this noun in captions."""
    if language == "zh":
        return [noun.chinese or emoji_data(noun)["zh"]]
    return list(dict.fromkeys((noun.name, noun.plural)))


def article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def captions(scene: Scene, language: Language, rng: random.Random, count: int = 5) -> list[str]:
    """`count` (at most 8) differently worded sentences; each names all objects and the background."""
    kind = "pair" if scene.relation else ("one", "two", "three")[scene.number - 1]
    templates = (_ENGLISH if language == "en" else _CHINESE)[kind]
    return [_fill(template, scene, language, rng) for template in rng.sample(templates, count)]


def _fill(template: str, scene: Scene, language: Language, rng: random.Random) -> str:
    background = BACKGROUNDS[scene.background]
    fields = {
        "background": background.chinese,
        "where": rng.choice(background.where if language == "en" else background.chinese_where),
    }
    nouns = [NOUNS[name] for name in scene.nouns]
    if scene.relation:
        turned = rng.randrange(2)  # which of the two is named first
        sides = _SIDES[language][scene.relation]
        fields["relation"] = rng.choice(_RELATIONS[language][scene.relation][turned])
        fields["side"], fields["other_side"] = sides[turned], sides[1 - turned]
        if turned:
            nouns.reverse()
    for noun, bare, whole in zip(nouns, "nm", "ab", strict=False):
        fields[bare] = forms(noun, language)[0]
        if language == "zh":
            fields[whole] = _NUMBERS["zh"][scene.number] + noun.measure + fields[bare]
        else:
            fields[whole] = article(noun.name) if scene.number == 1 else f"{_NUMBERS['en'][scene.number]} {noun.plural}"
    return template.format(**fields)
