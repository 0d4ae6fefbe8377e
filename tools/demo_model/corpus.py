"""The demo model's world: household and travel sentences, each in English, Portuguese and German.

A sentence of one language is a word-for-word fill of the same template as its translations, so every
recording comes with an English translation for the translate task.
"""

import random
from typing import NamedTuple

LANGUAGES = ("en", "pt", "de")


class Phrase(NamedTuple):
    """One meaning in the three languages."""

    en: str
    pt: str
    de: str


def _same(text: str) -> Phrase:
    return Phrase(text, text, text)


ROOMS = (
    Phrase("kitchen", "cozinha", "Küche"),
    Phrase("bedroom", "sala", "Stube"),
    Phrase("garage", "garagem", "Garage"),
    Phrase("library", "biblioteca", "Bibliothek"),
    Phrase("school", "escola", "Schule"),
    Phrase("church", "igreja", "Kirche"),
    Phrase("street", "rua", "Straße"),
    Phrase("city", "cidade", "Stadt"),
)
DEVICES = (
    Phrase("lamp", "lâmpada", "Lampe"),
    Phrase("machine", "máquina", "Maschine"),
    Phrase("clock", "campainha", "Uhr"),
    Phrase("camera", "câmera", "Kamera"),
    Phrase("music", "música", "Musik"),
    Phrase("heating", "bomba", "Heizung"),
)
CITIES = (
    Phrase("London", "Londres", "London"),
    Phrase("Paris", "Paris", "Paris"),
    Phrase("Lisbon", "Lisboa", "Lissabon"),
    Phrase("Berlin", "Berlim", "Berlin"),
    Phrase("Madrid", "Madri", "Madrid"),
    Phrase("Rome", "Roma", "Rom"),
)
DAYS = (
    Phrase("today", "hoje", "heute"),
    Phrase("tomorrow", "amanhã", "morgen"),
    Phrase("on Monday", "na segunda", "am Montag"),
    Phrase("on Friday", "na sexta", "am Freitag"),
    Phrase("on Sunday", "no domingo", "am Sonntag"),
)
ITEMS = (
    Phrase("apples", "maçãs", "Äpfel"),
    Phrase("oranges", "laranjas", "Orangen"),
    Phrase("tickets", "passagens", "Karten"),
    Phrase("bottles", "garrafas", "Flaschen"),
    Phrase("books", "cadernetas", "Bücher"),
    Phrase("tables", "mesas", "Tische"),
    Phrase("chairs", "cadeiras", "Stühle"),
    Phrase("letters", "cartas", "Briefe"),
)
NAMES = tuple(map(_same, ("Maria", "Anna", "Peter", "Laura", "David", "Robert", "Helena", "Thomas")))

SWITCH_ON, SWITCH_OFF = Phrase("on", "Ligue", "ein"), Phrase("off", "Desligue", "aus")
OPEN, CLOSE = Phrase("Open", "Abra", "Öffne"), Phrase("Close", "Feche", "Schließe")

SWITCH_TEMPLATE = Phrase(
    "Turn {action} the {device} in the {room}.",
    "{action} a {device} na {room}.",
    "Schalte die {device} in der {room} {action}.",
)
DOOR_TEMPLATE = Phrase(
    "{action} the door of the {room}.", "{action} a porta da {room}.", "{action} die Tür der {room}."
)
DIGITS_TEMPLATE = Phrase("The number is {digits}.", "O número é {digits}.", "Die Nummer ist {digits}.")

TEMPLATES = (
    SWITCH_TEMPLATE,
    Phrase(
        "Set a timer for {number} minutes.",
        "Coloque um alarme para {number} minutos.",
        "Stelle den Wecker auf {number} Minuten.",
    ),
    Phrase(
        "What is the weather in {city} {day}?",
        "Como está o tempo em {city} {day}?",
        "Wie ist das Wetter in {city} {day}?",
    ),
    Phrase(
        "Call {name} at {hour} o'clock.",
        "Ligue para {name} às {hour} horas.",
        "Rufe {name} um {hour} Uhr an.",
    ),
    Phrase(
        "Please buy {number} {item} and {hour} {other_item}.",
        "Por favor, compre {number} {item} e {hour} {other_item}.",
        "Bitte kaufe {number} {item} und {hour} {other_item}.",
    ),
    Phrase(
        "Send a message to {name} {day}.",
        "Envie uma mensagem para {name} {day}.",
        "Sende {day} eine Nachricht an {name}.",
    ),
    Phrase(
        "The meeting with {name} begins {day} at {hour} o'clock.",
        "A reunião com {name} começa {day} às {hour} horas.",
        "Das Treffen mit {name} beginnt {day} um {hour} Uhr.",
    ),
    DOOR_TEMPLATE,
    Phrase(
        "How many {item} are in the {room}?",
        "Quantas {item} estão na {room}?",
        "Wie viele {item} sind in der {room}?",
    ),
    Phrase(
        "The train to {city} leaves in {number} minutes.",
        "O trem para {city} sai em {number} minutos.",
        "Der Zug nach {city} fährt in {number} Minuten.",
    ),
    Phrase(
        "{name} and {other_name} are in the {room}.",
        "{name} e {other_name} estão na {room}.",
        "{name} und {other_name} sind in der {room}.",
    ),
    Phrase(
        "We travel from {city} to Vienna with {number} {item}.",
        "Viajamos de {city} para Viena com {number} {item}.",
        "Wir reisen von {city} nach Wien mit {number} {item}.",
    ),
    DIGITS_TEMPLATE,
)

NUMBERS = (
    Phrase("zero", "zero", "null"),
    Phrase("one", "um", "eins"),
    Phrase("two", "dois", "zwei"),
    Phrase("three", "três", "drei"),
    Phrase("four", "quatro", "vier"),
    Phrase("five", "cinco", "fünf"),
    Phrase("six", "seis", "sechs"),
    Phrase("seven", "sete", "sieben"),
    Phrase("eight", "oito", "acht"),
    Phrase("nine", "nove", "neun"),
    Phrase("ten", "dez", "zehn"),
    Phrase("eleven", "onze", "elf"),
    Phrase("twelve", "doze", "zwölf"),
    Phrase("thirteen", "treze", "dreizehn"),
    Phrase("fourteen", "quatorze", "vierzehn"),
    Phrase("fifteen", "quinze", "fünfzehn"),
    Phrase("sixteen", "dezesseis", "sechzehn"),
    Phrase("seventeen", "dezessete", "siebzehn"),
    Phrase("eighteen", "dezoito", "achtzehn"),
    Phrase("nineteen", "dezenove", "neunzehn"),
    Phrase("twenty", "vinte", "zwanzig"),
)
TENS = {
    20: Phrase("twenty", "vinte", "zwanzig"),
    30: Phrase("thirty", "trinta", "dreißig"),
    40: Phrase("forty", "quarenta", "vierzig"),
    50: Phrase("fifty", "cinquenta", "fünfzig"),
}


def number_phrase(number: int) -> Phrase:
    """Spell a number from 0 to 59."""
    if number < len(NUMBERS):
        return NUMBERS[number]
    tens, unit = TENS[number - number % 10], NUMBERS[number % 10]
    if number % 10 == 0:
        return tens
    german_unit = "ein" if number % 10 == 1 else unit.de
    return Phrase(f"{tens.en}-{unit.en}", f"{tens.pt} e {unit.pt}", f"{german_unit}und{tens.de}")


def sentence(rng: random.Random) -> Phrase:
    """Draw one sentence.

    Every kind of sentence draws the same words first, whether it says them or not: the training data
    depends on this order of draws.
    """
    template = TEMPLATES[rng.randrange(len(TEMPLATES))]
    words = _draw_words(rng)
    if template is SWITCH_TEMPLATE:
        words["action"] = SWITCH_ON if rng.random() < 0.5 else SWITCH_OFF
    elif template is DOOR_TEMPLATE:
        words["action"] = OPEN if rng.random() < 0.5 else CLOSE
    elif template is DIGITS_TEMPLATE:
        words["digits"] = _digits(rng)
    return Phrase(
        *(
            text.format(**{slot: phrase[column] for slot, phrase in words.items()})
            for column, text in enumerate(template)
        )
    )


def _draw_words(rng: random.Random) -> dict[str, Phrase]:
    room = rng.choice(ROOMS)
    rng.choice(ROOMS)  # a second room no template uses
    device, city, day = rng.choice(DEVICES), rng.choice(CITIES), rng.choice(DAYS)
    item, other_item = rng.sample(ITEMS, 2)
    name, other_name = rng.sample(NAMES, 2)
    number, hour = number_phrase(rng.randrange(2, 60)), number_phrase(rng.randrange(3, 13))
    return {
        "room": room,
        "device": device,
        "city": city,
        "day": day,
        "item": item,
        "other_item": other_item,
        "name": name,
        "other_name": other_name,
        "number": number,
        "hour": hour,
    }


def _digits(rng: random.Random) -> Phrase:
    digits = [NUMBERS[rng.randrange(10)] for _ in range(rng.randrange(3, 7))]
    return Phrase(*(", ".join(words) for words in zip(*digits, strict=True)))
