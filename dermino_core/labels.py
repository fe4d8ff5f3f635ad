"""Disease names: normalise them, and map a site's own names onto the classes of a task."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from dermino_core.errors import DerminoError

TASKS: dict[str, tuple[str, ...]] = {"malignancy": ("benign", "malignant")}
"""The tasks dermino knows, and their classes in the order of the model's outputs."""

EXCLUDED = ""
"""A label mapped to this is left out on purpose."""

_BRACKETED = re.compile(r"\([^()]*\)|\[[^\[\]]*\]")
_DASHES = re.compile(r"[-‐-―−_/\s]+")
_APOSTROPHES = re.compile(r"['’ʼ`´]")
_PUNCTUATION = re.compile(r"[^\w\s]+")

# Names as normalise_label gives them; whole names only, never parts: "non melanoma" is no melanoma.
# Actinic keratosis and Bowen's disease: precancerous and in situ, yet malignant here, because the
# paper's MPL5 counts both among five malignant skin tumours (section 4.1), Fitzpatrick17k has
# actinic keratosis in its partition "malignant", and HAM10000's akiec holds the two together.
_MALIGNANT = """
    malignant; cancer; skin cancer; melanoma; mel; malignant melanoma; melanoma in situ;
    invasive melanoma; nodular melanoma; acral lentiginous melanoma; amelanotic melanoma;
    superficial spreading melanoma; superficial spreading melanoma ssm; melanoma metastasis;
    lentigo maligna; lentigo maligna melanoma;
    basal cell carcinoma; bcc; basalioma; nodular basal cell carcinoma;
    superficial basal cell carcinoma; basal cell carcinoma morpheiform;
    morpheaform basal cell carcinoma; pigmented basal cell carcinoma;
    solid cystic basal cell carcinoma;
    squamous cell carcinoma; scc; cutaneous squamous cell carcinoma; cscc;
    squamous cell carcinoma in situ; scc in situ; invasive squamous cell carcinoma;
    intraepithelial carcinoma; bowen; bowens disease; bowen disease; bowen s disease;
    akiec; ack; ak; actinic keratosis; actinic keratoses; solar keratosis;
    actinic keratosis intraepithelial carcinoma; actinic keratoses intraepithelial carcinoma;
    actinic keratoses and intraepithelial carcinoma;
    merkel cell carcinoma; kaposi sarcoma; kaposis sarcoma; angiosarcoma;
    dermatofibrosarcoma protuberans; mycosis fungoides; cutaneous t cell lymphoma;
    cutaneous lymphoma; extramammary paget disease; pagets disease; sebaceous carcinoma
"""
_BENIGN = """
    benign; nevus; naevus; nevi; naevi; nv; nev; mole; melanocytic nevus; melanocytic naevus;
    melanocytic nevi; common nevus; common naevus; atypical nevus; atypical naevus;
    dysplastic nevus; dysplastic naevus; congenital nevus; congenital naevus; halo nevus;
    blue nevus; blue naevus; spitz nevus; spitz naevus; reed nevus; dermal nevus; junctional nevus;
    compound nevus; intradermal nevus; clark nevus; nevocytic nevus; becker nevus;
    epidermal nevus; naevus comedonicus; nevus sebaceous; nevus sebaceous of jadassohn;
    bkl; benign keratosis; benign keratosis like lesion; benign keratosis like lesions;
    seborrheic keratosis; seborrhoeic keratosis; seborrheic keratoses; sek; sk;
    solar lentigo; lentigo; lentigo simplex; lentigines; ephelis; freckle;
    lichen planus like keratosis; lplk;
    df; dermatofibroma; vasc; vascular lesion; vascular lesions; hemangioma; haemangioma; angioma;
    cherry angioma; angiokeratoma; pyogenic granuloma; granuloma pyogenic; port wine stain;
    lymphangioma; telangiectases; milia; mucous cyst; pilar cyst; epidermoid cyst; lipoma;
    neurofibroma; skin tag; acrochordon; pilomatricoma; syringoma; fordyce spots;
    sebaceous hyperplasia; prurigo nodularis; porokeratosis of mibelli; porokeratosis actinic;
    disseminated actinic porokeratosis
"""
_DIAGNOSES: dict[str, dict[str, str]] = {
    "malignancy": {
        " ".join(name.split()): answer
        for names, answer in ((_MALIGNANT, "malignant"), (_BENIGN, "benign"))
        for name in names.split(";")
    }
}


def normalise_label(text: str) -> str:
    """One spelling for names that differ only in writing.

    Unicode NFKC, case, hyphens, underscores, slashes, punctuation, apostrophes and white space
    no longer matter; a synonym in brackets after a name is dropped. (Character-level
    normalisation of section 4.1.4.)

    Example
    -------
    >>> normalise_label("Basal-Cell_carcinoma (BCC)")
    'basal cell carcinoma'
    """
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    outside, changed = _BRACKETED.subn(" ", plain)
    while changed:  # brackets within brackets
        outside, changed = _BRACKETED.subn(" ", outside)
    # "(BCC)" alone is no synonym but the name.
    plain = outside if _PUNCTUATION.sub("", outside).strip(" _") else plain
    plain = _DASHES.sub(" ", _APOSTROPHES.sub("", plain))
    return " ".join(_PUNCTUATION.sub(" ", plain).split())


def propose_label_map(
    labels: Iterable[str], classes: Sequence[str], task: str
) -> dict[str, str | None]:
    """Propose a class for each label, for a person to confirm.

    A label that is a class in other writing gets that class. For the task "malignancy", common
    diagnoses are known by name. Inflammatory diseases are not: whether psoriasis counts as benign
    is for the study to decide.

    Parameters
    ----------
    labels
        Labels as the site writes them; duplicates are welcome.
    classes
        Classes of the task.
    task
        One of :data:`TASKS`, or another, of which no diagnosis is known.

    Returns
    -------
    dict[str, str | None]
        Each distinct label, in the order of first appearance; None where nothing is known.
    """
    same = {normalise_label(name): name for name in classes}
    known = _DIAGNOSES.get(task, {})
    proposal: dict[str, str | None] = {}
    for label in labels:
        plain = normalise_label(label)
        proposal[label] = same.get(plain) or same.get(known.get(plain, ""))
    return proposal


def apply_label_map(
    labels: Sequence[str | None], mapping: Mapping[str, str], classes: Sequence[str]
) -> list[int | None]:
    """Turn a site's labels into class numbers.

    A label is looked up as written first, then as :func:`normalise_label` writes it.

    Parameters
    ----------
    labels
        One per image; None for an image without a label.
    mapping
        Site label -> class, or :data:`EXCLUDED` to leave its images out.
    classes
        Classes of the task.

    Returns
    -------
    list[int | None]
        Index into `classes`; None for images without a label and for excluded ones.

    Raises
    ------
    DerminoError
        `LABEL_UNMAPPED`, listing each label that the mapping lacks and its number of images;
        `CONFIG_INVALID` if the mapping names a class that does not exist, or two entries that
        differ only in writing disagree about a label.
    """
    number = {name: index for index, name in enumerate(classes)}
    allowed = f"Allowed are {', '.join(map(repr, classes))}, or '' to leave the images out."
    lenient: dict[str, set[str]] = {}
    for label, name in mapping.items():
        if name != EXCLUDED and name not in number:
            raise DerminoError(
                "CONFIG_INVALID", f"Label {label!r} is mapped to {name!r}, no class.", fix=allowed
            )
        lenient.setdefault(normalise_label(label), set()).add(name)
    answers: dict[str, str] = {}
    unmapped: list[str] = []
    counts = Counter(label for label in labels if label is not None)
    for label in counts:
        names = {mapping[label]} if label in mapping else lenient.get(normalise_label(label), set())
        if len(names) > 1:
            raise DerminoError(
                "CONFIG_INVALID",
                f"Label {label!r} fits entries mapped to {' and '.join(map(repr, sorted(names)))}.",
                fix=f"Add an entry written exactly {label!r}.",
            )
        if names:
            answers[label] = names.pop()
        else:
            unmapped.append(label)
    if unmapped:
        listed = ", ".join(
            f"{label!r} ({counts[label]})"
            for label in sorted(unmapped, key=lambda label: (-counts[label], label))
        )
        raise DerminoError(
            "LABEL_UNMAPPED",
            f"{len(unmapped)} labels are not mapped onto the task's classes: {listed}.",
            fix=f"Add each to the label map. {allowed}",
        )
    return [None if label is None else number.get(answers[label]) for label in labels]
