"""Disease names at the level of characters: one spelling for a name, its synonyms and its plural.

DermINO, section 4.1.4, first half: what can be said without knowing what words mean. The second
half, which needs a language model, is :mod:`dermino_core.label_merging`.
"""

from __future__ import annotations

import re
import unicodedata

from dermino_core.labels import normalise_label

NOT = "!"
"""Before a name: the image is known not to have it."""

_SEPARATORS = re.compile(r"[|;]")
_BRACKETS = re.compile(r"[(\[]([^()\[\]]*)[)\]]")
_POSSESSIVE = re.compile(r"(?<=\w)['’ʼ`´][sS]\b")

_KINDS = """
    in situ invasive metastatic metastasis benign malignant premalignant atypical dysplastic
    common nodular superficial spreading morpheaform morpheiform infiltrative pigmented amelanotic
    acral congenital acquired acute chronic subacute early late mild moderate severe non not less
    than more mm thin thick type grade stage
"""
_QUALIFIERS = frozenset(_KINDS.split())
"""Words that, in brackets, make a kind of the disease: "melanoma (in situ)" is not a melanoma."""

_BRITISH = tuple(
    (re.compile(british), american)
    for british, american in (
        ("rhoe", "rhe"),
        ("oedema", "edema"),
        ("morphoe", "morphe"),
        ("n[ae]ev", "nev"),
        ("haem", "hem"),
        ("anaemi", "anemi"),
        ("leukaemi", "leukemi"),
        ("ischaemi", "ischemi"),
        ("a+emia\\b", "emia"),
        ("paed", "ped"),
        ("aetio", "etio"),
        ("tumour", "tumor"),
        ("colour", "color"),
        ("(general|local|keratin|necrot|depigment)is(?=[ei])", r"\1iz"),
        ("fibre", "fiber"),
        ("\\bgrey\\b", "gray"),
    )
)
_IRREGULAR = {
    "keratoses": "keratosis",
    "dermatoses": "dermatosis",
    "photodermatoses": "photodermatosis",
    "porokeratoses": "porokeratosis",
    "metastases": "metastasis",
    "telangiectases": "telangiectasis",
    "nevi": "nevus",
    "verrucae": "verruca",
    "lentigines": "lentigo",
    "ephelides": "ephelis",
    "comedones": "comedo",
    "angiomata": "angioma",
    "hemangiomata": "hemangioma",
    "fibromata": "fibroma",
}
_PLURALS = """
    lesions cancers tumors cysts warts tags spots moles freckles burns bites ulcers scars keloids
    infections eruptions reactions diseases disorders malformations changes blisters abscesses
    excoriations rashes
"""
_REGULAR = frozenset(_PLURALS.split())
_EPONYMS = re.compile(
    r"\b(bowen|darier|behcet|kaposi|paget|becker|clark|reed|hansen|grover|schamberg|merkel|fordyce)s\b"
)

_SYNONYMS = {
    "atypical nevus": ("dysplastic nevus", "clark nevus"),
    "actinic keratosis": ("ak", "ack", "solar keratosis", "senile keratosis"),
    "actinic keratosis intraepithelial carcinoma": (
        "akiec",
        "actinic keratosis and intraepithelial carcinoma",
        "actinic keratosis bowen disease",
    ),
    "basal cell carcinoma": ("bcc", "basalioma", "basal cell cancer", "basal cell epithelioma"),
    "benign keratosis": ("bkl", "benign keratosis like lesion"),
    "dermatofibroma": ("df",),
    "melanocytic nevus": (
        "nv",
        "nev",
        "nevus",
        "common nevus",
        "mole",
        "nevocytic nevus",
        "nevocellular nevus",
        "melanocytic mole",
    ),
    "melanoma": ("mel", "malignant melanoma", "cutaneous melanoma"),
    "lichen planus like keratosis": ("lplk",),
    "seborrheic keratosis": ("sk", "sek", "seborrheic wart"),
    "skin tag": ("acrochordon",),
    "squamous cell carcinoma": ("scc", "cscc", "cutaneous squamous cell carcinoma"),
    "squamous cell carcinoma in situ": ("sccis", "scc in situ", "bowen disease", "bowen"),
    "vascular lesion": ("vasc",),
}
_CANONICAL = {other: name for name, others in _SYNONYMS.items() for other in others}

_NO_DIAGNOSIS = """
    unknown; unk; unlabelled; unlabeled; none; na; n a; nan; null; other; others; other diagnosis;
    not available; not known; undetermined; no diagnosis; unspecified
"""
_UNKNOWN = frozenset(" ".join(name.split()) for name in _NO_DIAGNOSIS.split(";"))


def split_labels(cell: str | None) -> tuple[str, ...]:
    """The labels of one cell of a manifest: separated by `|` or `;`, in order, each once.

    Example
    -------
    >>> split_labels("psoriasis | eczema;psoriasis")
    ('psoriasis', 'eczema')
    """
    parts = (part.strip() for part in _SEPARATORS.split(cell or ""))
    return tuple(dict.fromkeys(part for part in parts if part))


def tidy_name(text: str) -> str:
    """One writing of a name whose words are meant as they stand, brackets included.

    As :func:`dermino_core.labels.normalise_label`, but words in brackets stay: what a person typed
    into a table of labels is not cut.
    """
    return normalise_label(re.sub(r"[()\[\]]", " ", text))


def canonical_name(text: str) -> str:
    """The name of a disease in one spelling.

    Case, Unicode, accents, hyphens, punctuation and apostrophes no longer matter; British spelling
    becomes American, plurals become singular (only those that are surely plurals), well-known
    abbreviations and synonyms of dermatology become the name. An abbreviation or synonym in
    brackets is dropped (:func:`bracketed_abbreviation` reads it); words in brackets that make a
    kind of the disease stay. (Character-level normalisation, section 4.1.4.)

    Returns
    -------
    str
        The name; empty if nothing readable is left.

    Example
    -------
    >>> canonical_name("Seborrhoeic keratoses"), canonical_name("BCC")
    ('seborrheic keratosis', 'basal cell carcinoma')
    >>> canonical_name("Melanoma (in situ)")
    'melanoma in situ'
    """
    name = _expanded(text) or _spelling(_keep_qualifiers(text))
    return _CANONICAL.get(name, name)


def bracketed_abbreviation(text: str) -> tuple[str, str] | None:
    """What a label with brackets teaches: (abbreviation, name), or None.

    "basal cell carcinoma (BCC)" and "BCC (basal cell carcinoma)" both teach that BCC is basal cell
    carcinoma. Only abbreviations are taught, recognised by their letters, which stand in the name
    in this order: other words in brackets may be a body site or a cause.

    Example
    -------
    >>> bracketed_abbreviation("Basal-cell carcinoma (BCC)")
    ('bcc', 'basal cell carcinoma')
    """
    found = _BRACKETS.search(text)
    if found is None:
        return None
    inside, outside = _spelling(found[1]), _spelling(_BRACKETS.sub(" ", text))
    for short, name in ((inside, outside), (outside, inside)):
        if _abbreviates(short, name):
            return short, _CANONICAL.get(name, name)
    return None


def means_unknown(name: str) -> bool:
    """Whether a canonical name says that the diagnosis is not known ("unknown", "other")."""
    return not name or name in _UNKNOWN


def negated_name(name: str) -> str | None:
    """X of "non X", canonical; None for any other name.

    Example
    -------
    >>> negated_name(canonical_name("non_melanoma"))
    'melanoma'
    """
    first, _, rest = name.partition(" ")
    return (_CANONICAL.get(rest, rest) or None) if first in {"non", "not"} else None


def _expanded(text: str) -> str | None:
    """The long name where the abbreviation stands outside of the brackets."""
    taught = bracketed_abbreviation(text)
    return taught[1] if taught and taught[0] == _spelling(_BRACKETS.sub(" ", text)) else None


def _abbreviates(short: str, name: str) -> bool:
    if not short or " " in short or not 2 <= len(short) <= 6 or len(name) < 2 * len(short):
        return False
    letters = iter(name)
    return short[0] == name[0] and all(letter in letters for letter in short)


def _keep_qualifiers(text: str) -> str:
    def answer(found: re.Match[str]) -> str:
        words = normalise_label(found[1]).split()
        stays = words and all(w in _QUALIFIERS or w[0].isdigit() for w in words)
        return f" {found[1]} " if stays else found[0]

    return _BRACKETS.sub(answer, text)


def _spelling(text: str) -> str:
    plain = normalise_label(_POSSESSIVE.sub("", text))
    plain = plain.replace("æ", "ae").replace("œ", "oe")
    letters = unicodedata.normalize("NFD", plain)
    plain = unicodedata.normalize(
        "NFC", "".join(x for x in letters if not unicodedata.combining(x))
    )
    for pattern, american in _BRITISH:
        plain = pattern.sub(american, plain)
    plain = _EPONYMS.sub(r"\1", plain)
    return " ".join(_singular(word) for word in plain.split())


def _singular(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word in _REGULAR:
        return word[:-2] if word.endswith(("sses", "shes")) else word[:-1]
    return word[:-1] if word.endswith("omas") else word
