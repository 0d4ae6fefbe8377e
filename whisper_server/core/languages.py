"""The languages Whisper knows, by code and by English name."""

from collections.abc import Mapping
from types import MappingProxyType

LANGUAGES: Mapping[str, str] = MappingProxyType(
    {
        "af": "afrikaans",
        "am": "amharic",
        "ar": "arabic",
        "as": "assamese",
        "az": "azerbaijani",
        "ba": "bashkir",
        "be": "belarusian",
        "bg": "bulgarian",
        "bn": "bengali",
        "bo": "tibetan",
        "br": "breton",
        "bs": "bosnian",
        "ca": "catalan",
        "cs": "czech",
        "cy": "welsh",
        "da": "danish",
        "de": "german",
        "el": "greek",
        "en": "english",
        "es": "spanish",
        "et": "estonian",
        "eu": "basque",
        "fa": "persian",
        "fi": "finnish",
        "fo": "faroese",
        "fr": "french",
        "gl": "galician",
        "gu": "gujarati",
        "ha": "hausa",
        "haw": "hawaiian",
        "he": "hebrew",
        "hi": "hindi",
        "hr": "croatian",
        "ht": "haitian creole",
        "hu": "hungarian",
        "hy": "armenian",
        "id": "indonesian",
        "is": "icelandic",
        "it": "italian",
        "ja": "japanese",
        "jw": "javanese",
        "ka": "georgian",
        "kk": "kazakh",
        "km": "khmer",
        "kn": "kannada",
        "ko": "korean",
        "la": "latin",
        "lb": "luxembourgish",
        "ln": "lingala",
        "lo": "lao",
        "lt": "lithuanian",
        "lv": "latvian",
        "mg": "malagasy",
        "mi": "maori",
        "mk": "macedonian",
        "ml": "malayalam",
        "mn": "mongolian",
        "mr": "marathi",
        "ms": "malay",
        "mt": "maltese",
        "my": "myanmar",
        "ne": "nepali",
        "nl": "dutch",
        "nn": "nynorsk",
        "no": "norwegian",
        "oc": "occitan",
        "pa": "punjabi",
        "pl": "polish",
        "ps": "pashto",
        "pt": "portuguese",
        "ro": "romanian",
        "ru": "russian",
        "sa": "sanskrit",
        "sd": "sindhi",
        "si": "sinhala",
        "sk": "slovak",
        "sl": "slovenian",
        "sn": "shona",
        "so": "somali",
        "sq": "albanian",
        "sr": "serbian",
        "su": "sundanese",
        "sv": "swedish",
        "sw": "swahili",
        "ta": "tamil",
        "te": "telugu",
        "tg": "tajik",
        "th": "thai",
        "tk": "turkmen",
        "tl": "tagalog",
        "tr": "turkish",
        "tt": "tatar",
        "uk": "ukrainian",
        "ur": "urdu",
        "uz": "uzbek",
        "vi": "vietnamese",
        "yi": "yiddish",
        "yo": "yoruba",
        "yue": "cantonese",
        "zh": "chinese",
    }
)
"""Whisper's code to lower-case English name."""

# Codes and names in use elsewhere for languages that Whisper calls otherwise.
_OTHER_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "jv": "jw",
        "nb": "no",
        "fil": "tl",
        "iw": "he",
        "in": "id",
        "cmn": "zh",
        "mandarin": "zh",
        "burmese": "my",
        "castilian": "es",
        "flemish": "nl",
        "haitian": "ht",
        "letzeburgesch": "lb",
        "moldavian": "ro",
        "moldovan": "ro",
        "panjabi": "pa",
        "pushto": "ps",
        "sinhalese": "si",
        "valencian": "ca",
        "farsi": "fa",
    }
)

_CODE_BY_NAME: Mapping[str, str] = MappingProxyType(
    {name: code for code, name in LANGUAGES.items()} | dict(_OTHER_NAMES)
)


def language_code(text: str) -> str | None:
    """Whisper's code for a code, one with a region such as `pt-BR`, or an English name; None if unknown."""
    name = text.strip().lower().replace("_", "-")
    for candidate in (name, name.split("-")[0]):
        if candidate in LANGUAGES:
            return candidate
        if candidate in _CODE_BY_NAME:
            return _CODE_BY_NAME[candidate]
    return None


def language_name(code: str) -> str:
    """The lower-case English name of a code; the code itself where it has none."""
    return LANGUAGES.get(code, code)
