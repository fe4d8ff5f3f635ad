"""How to read the report: every term in one or two sentences. Plain text."""

from __future__ import annotations

TERMS: tuple[tuple[str, str], ...] = (
    (
        "AUROC",
        "Take one image of each class at random: AUROC is how often the model gives the right one "
        "the higher score. 0.5 is guessing, 1 is perfect; with more than two classes it is the "
        "mean over the classes (macro).",
    ),
    (
        "F1",
        "The balance between finding a class (sensitivity) and being right when naming it "
        "(precision), averaged over the classes. It judges the model’s final decision, so it can "
        "be low even when the ranking (AUROC) is good.",
    ),
    (
        "Balanced accuracy",
        "Of the images of each class, how many the model names rightly, averaged over the classes "
        "that have test images: a rare class counts as much as a common one. Shown where there "
        "are more than two classes; guessing gives one divided by their number.",
    ),
    (
        "95 % interval",
        "The test images were redrawn at random many times (bootstrap) and the measurement "
        "repeated; 95 % of the repetitions fall inside. It covers the chance of which images were "
        "tested, not other hospitals, other cameras or another training run.",
    ),
    (
        "Mean",
        "Every hospital counts the same, however many images it has.",
    ),
    (
        "Federated model",
        "Each hospital trains a small last layer on its own images and sends only that layer; the "
        "coordinator averages them, weighted by the number of images. The same model is then "
        "tested at every hospital.",
    ),
    (
        "Each hospital alone",
        "The baseline without cooperation: a hospital’s own model tested on its own images. "
        "Joining is worthwhile where the federated model does better than this.",
    ),
    (
        "Personal model",
        "A hospital’s own: its images in full, all other hospitals’ sums at a discount that it "
        "chose by leaving its own patients out in turn. It is made inside the hospital and stays "
        "there. The part of the others never holds the images that it is judged on.",
    ),
    (
        "All data pooled",
        "The baseline without privacy: one model trained on all images in one place. It exists in "
        "simulations only and shows what keeping the data apart costs.",
    ),
    (
        "Converged",
        "The same linear layer on the same features, but solved to the optimum of a logistic "
        "regression with a fixed penalty instead of trained for a few rounds. A gap to the "
        "federated model is the price of the short schedule; other penalties may reach further.",
    ),
    (
        "ROC curve",
        "For every possible threshold: how many of the sought images are found (up is better) "
        "against how many others raise a false alarm (left is better). The diagonal is guessing; "
        "the shaded band is the 95 % interval at each point.",
    ),
    (
        "Calibration",
        "Among images given a probability of 30 %, about 30 % should truly be of the class. "
        "Points on the diagonal mean the probabilities can be taken at their word; bars show how "
        "many images each point rests on.",
    ),
)

NOT_A_DEVICE = (
    "Research software. It is not a medical device, has not been assessed for clinical use, and "
    "its output must not guide the care of a patient."
)
