"""The small world of the embedded corpus, as tables of facts, phrases and tasks (no logic).

Template language, expanded by `generate.expand`:

- `<name>` is replaced by the phrase of that name in `PHRASES`;
- `[a|b|c]` draws one alternative; the first is the likeliest (weight 1/rank);
- `{slot}` is filled from the facts of the row.
"""

from typing import NamedTuple


class Home(NamedTuple):
    """Facts that the animals of one neighbourhood share."""

    foods: tuple[str, str]
    places: tuple[str, str]
    act: str
    weather: str
    time: str


class Animal(NamedTuple):
    """Facts of one animal, the same in every row that mentions it."""

    home: str
    colour: str
    size: str


HOMES: dict[str, Home] = {
    "wood": Home(("berries", "nuts"), ("forest", "hill"), "hide", "fog", "night"),
    "water": Home(("worms", "fish"), ("lake", "river"), "rest", "rain", "evening"),
    "farm": Home(("grass", "corn"), ("field", "barn"), "run", "wind", "morning"),
    "town": Home(("bread", "apples"), ("house", "garden"), "play", "sun", "day"),
}
ANIMALS: dict[str, Animal] = {
    "bear": Animal("wood", "brown", "big"),
    "fox": Animal("wood", "red", "young"),
    "wolf": Animal("wood", "grey", "big"),
    "duck": Animal("water", "white", "small"),
    "frog": Animal("water", "green", "small"),
    "swan": Animal("water", "white", "big"),
    "goat": Animal("farm", "grey", "young"),
    "horse": Animal("farm", "brown", "big"),
    "rabbit": Animal("farm", "grey", "small"),
    "cat": Animal("town", "black", "young"),
    "dog": Animal("town", "red", "young"),
    "mouse": Animal("town", "black", "small"),
}

PLACES: dict[str, str] = {
    "river": "by the river",
    "forest": "in the forest",
    "hill": "on the hill",
    "garden": "in the garden",
    "field": "in the field",
    "lake": "by the lake",
    "house": "near the house",
    "barn": "near the barn",
}
TIMES: dict[str, str] = {
    "morning": "in the morning",
    "day": "during the day",
    "evening": "in the evening",
    "night": "at night",
}
ACTS: dict[str, tuple[str, str]] = {
    "hide": ("hides", "hiding"),
    "rest": ("rests", "resting"),
    "run": ("runs", "running"),
    "play": ("plays", "playing"),
}
PEOPLE: dict[str, str] = {
    "Anna": "she",
    "Eva": "she",
    "Tom": "he",
    "Ben": "he",
}
SEASONS = ("spring", "summer", "autumn", "winter")
WEATHER = ("rain", "wind", "sun", "fog")
COLOURS = ("red", "brown", "grey", "white", "green", "black")
SIZES = ("small", "big", "young")

PHRASES: dict[str, str] = {
    "The": "[The {a}|The {size} {a}|The {col} {a}|This {a}|It]",
    "the": "[the {a}|the {size} {a}|the {col} {a}|this {a}|it]",
    "ada": "[a {a}|a {col} {a}|a {size} {a}]",
    "Ada": "[A {a}|A {col} {a}|A {size} {a}]",
    "often": "[often |always ||]",
    "eats": "[eats|looks for|finds|likes]",
    "eat": "[eat|look for|find]",
    "foods": "[{f1} and {f2}|{f2} and {f1}|{f1}|{f2}]",
    "place": "[{p1}|{p2}]",
    "when": "[ {t}|| in {s}| when there is {w}]",
    "Front": "[{T}|In {s}|When there is {w}], ",
    "more": " [It|Then it|The {a}] <often>[{acts} <place><when>|<eats> <foods> <place>|likes the {w}].",
}


class Task(NamedTuple):
    """One kind of task: how it is asked, and how it may be answered."""

    category: str
    ask: str  # imperative clause, put into one of the FRAMES
    question: str  # direct form, or "" where there is none
    answers: tuple[str, ...]  # the likeliest first
    context: str = ""  # template of the text the prompt is about, if any


SAW = (
    "{P} saw a {col} {a} {x}. The {a} was {doing} {t}.",
    "{T}, {P} went to the {place}. There {p} saw a {col} {a}. The {a} was {doing}.",
)
STORY = (
    "{P} went to the {place} {t}. {p_} saw a {col} {a} and a {colb} {b}. Then {p} ate {food}.",
    "{T}, {P} and {Q} went to the {place}. They saw a {col} {a} and a {colb} {b}. There was {w}.",
)

TASKS: tuple[Task, ...] = (
    Task(
        "open_qa",
        "say what the {a} eats in {s}",
        "[What does the {a} eat in {s}?|What does the {a} like to eat in {s}?]",
        (
            "<The> <often><eats> <foods> <place><when>.",
            "<Front><the> <often><eats> <foods> <place>.",
            "In {s}, <the> <eats> <foods>, and it <often>{acts} <place>.",
        ),
    ),
    Task(
        "open_qa",
        "say where the {a} lives in {s}",
        "[Where does the {a} live in {s}?|Where can I find a {a} in {s}?]",
        (
            "<The> [lives|stays] <place>, where it <often><eats> <foods><when>.",
            "You can [find|see] <ada> <place>, where it <often>{acts}<when>.",
            "<Front><the> [stays|lives] <place> and <eats> <foods>.",
        ),
    ),
    Task(
        "open_qa",
        "say how the {a} looks",
        "[How does the {a} look?|What does a {a} look like?]",
        (
            "[The {a}|It] is [{size} and {col}|{col} and {size}], and it <often>{acts} <place><when>.",
            "It is a {size} {col} animal that <often>{acts} <place> and <eats> <foods>.",
            "The {a} is a [{col}|{size}] animal, and you can [find|see] it <place><when>.",
        ),
    ),
    Task(
        "general_qa",
        "say why the {a} goes to the {place}",
        "[Why does the {a} go to the {place}?|Why can we find the {a} {x}?]",
        (
            "<The> [goes there|goes to the {place}] because it [likes|wants] to {act} and <eat> <foods>.",
            "It [wants|likes] to <eat> <foods> there, and it <often>{acts}<when>.",
            "Because it can [{act} there|<eat> <foods> there] and [look for <foods>|{act} in the {w}].",
        ),
    ),
    Task(
        "general_qa",
        "say how the {a} spends the {s}",
        "[How does the {a} spend the {s}?|What does the {a} do in {s}?]",
        (
            "In {s}, <the> <often>{acts} <place> and <eats> <foods>[| {t}].",
            "<The> <often>{acts} <place><when> and <eats> <foods>.",
            "It [likes|wants] to {act} <place> in {s} and to <eat> <foods>.",
        ),
    ),
    Task(
        "general_qa",
        "say what the {a} likes in the {v}",
        "[Does the {a} like the {v}?|What does the {a} do when there is {v}?]",
        (
            "When there is {v}, <the> <often>{acts} <place> and <eats> <foods>.",
            "{Yes}, the {a} likes the {w}, and it <often>{acts} <place><when>.",
            "In the {v}, <the> likes to {act} <place>[ and to <eat> <foods>|].",
        ),
    ),
    Task(
        "classification",
        "say if the {a} is {o1} or {o2}",
        "Is the {a} {o1} or {o2}?",
        (
            "[The {a}|It] is {o}, and it <often>{acts} <place><when>.",
            "[The {a}|It] is {o}.",
            "The {a} is {o} and not {no}, and it <eats> <foods> <place>.",
        ),
    ),
    Task(
        "classification",
        "say which is an animal, {o1} or {o2}",
        "[Which is an animal, {o1} or {o2}?|Is {o1} an animal, or {o2}?]",
        (
            "The {a} is an animal, and it <often><eats> <foods> <place>.",
            "The {a} is [an animal|a {size} animal].",
            "The {a} is an animal[,| and] not {no}, and it <often>{acts} <place>.",
        ),
    ),
    Task(
        "closed_qa",
        "say what {P} saw",
        "[What did {P} see?|Which animal did {P} see?]",
        (
            "{P} saw a {col} {a} {x}, and it was {doing}[ {t}|].",
            "[{p_}|{P}] saw a [{col} {a}|{a}] that was {doing} {x}[| {t}].",
            "A {col} {a}.",
        ),
        "[" + "|".join(SAW) + "]",
    ),
    Task(
        "closed_qa",
        "say where the {a} was",
        "[Where was the {a}?|Where did {P} see the {a}?]",
        (
            "The [{col} {a}|{a}] was {x}, and {P} saw it [there|{t}].",
            "{P} saw [the|a] [{col} {a}|{a}] {x} [{t}|when it was {doing}].",
            "It was {x}[| {t}].",
        ),
        "[" + "|".join(SAW) + "]",
    ),
    Task(
        "brainstorming",
        "give me ideas for a day of {v} {x} in {s}",
        "[What can I do {x} in {s}?|What can we do {x} when there is {v} in {s}?]",
        (
            "You can [look for {f1}|look for {f2}|find {f2}], [watch the {a}|look for the {b}] "
            "[and|or] [{act}|rest] {x}.",
            "[You can watch|Look for] [a {a}|a {b}|the {a} and the {b}] {x}, then eat [{f1}|{f2}|{f1} and {f2}].",
            "In {s}, you can {act} {x}, [eat|look for] [{f1}|{f2}] [and|or] watch the [{a}|{b}].",
        ),
    ),
    Task(
        "information_extraction",
        "list the animals in the text",
        "Which animals are in the text?",
        (
            "The animals in the text are [a {col} {a} and a {colb} {b}|the {a} and the {b}].",
            "[There is|In the text there is] a [{col} {a}|{a}] and a [{colb} {b}|{b}] {x}.",
            "A {a} and a {b}.",
        ),
        "[" + "|".join(STORY) + "]",
    ),
    Task(
        "summarization",
        "sum up the text",
        "What is the text about?",
        (
            "{P} saw a [{col} {a}|{a}] and a [{colb} {b}|{b}] {x}[ {t}|].",
            "[{T}, {P}|{P}] [|went to the {place} and ]saw a [{a} and a {b}|{col} {a} and a {colb} {b}] [{x}|there].",
            "The text is about {P}, a {a} and a {b} {x}[| {t}].",
        ),
        "[" + "|".join(STORY) + "]",
    ),
    Task(
        "creative_writing",
        "write a story about a {a} and a {b} {x}",
        "",
        (
            "[One day|In {s}|{T}], <ada> [saw|met] a {b} {x}, and they [ate <foods>|looked for <foods>] there.",
            "<Ada> and a {b} met {x} {t}, and they [ate|looked for] <foods>.",
            "[One day|In {s}|When there was {w}], <ada> [went to the {place}|looked for <foods> {x}] "
            "and [saw|met] a {b}.",
        ),
    ),
    Task(
        "creative_writing",
        "write a song about the {a} in the {v}",
        "",
        (
            "[Oh {a}, {col} {a}|Oh {col} {a}|Oh {size} {a}], [you {act}|we see you] <place> "
            "in the {v}, and you <eat> <foods>.",
            "The {v} is [here|there], and the {col} {a} {acts} <place>, [oh {a}|and it <eats> <foods>].",
        ),
    ),
)

FRAMES: dict[str, tuple[str, ...]] = {
    "plain": ("{Ask}.",),
    "user": ("Please {ask}.", "Can you {ask}?", "I want you to {ask}."),
    "task": ("Your task is to {ask}.", "This is your task: {ask}.", "Here is a task: {ask}."),
    "new": ("In your own words, {ask}.", "Use one sentence and {ask}.", "Now {ask}."),
    "more": ("{Ask} in two sentences.", "In two sentences, {ask}."),
}
