"""What NannyML estimates of the accuracy of answers, by their scores alone: python cbpe.py FILE.npz

The file holds `ids` (A class ids), `reference` (N×A scores) with `truth` (N class ids), and `stretch_0`, `stretch_1` …
(scores). Prints a list, in JSON: an accuracy for each stretch. Runs in an environment of its own, which has NannyML.
"""

import json
import sys
import warnings

import nannyml
import numpy as np
import pandas as pd

warnings.filterwarnings("ignore")

found = np.load(sys.argv[1])
names = [str(class_id) for class_id in found["ids"]]


def frame(scores):
    """N×A scores as NannyML wants them."""
    made = pd.DataFrame(scores.astype(np.float64), columns=[f"score {name}" for name in names])
    made["answer"] = [names[k] for k in scores.argmax(axis=1)]
    return made


reference = frame(found["reference"])
reference["truth"] = [str(class_id) for class_id in found["truth"]]
estimator = nannyml.CBPE(
    problem_type="classification_multiclass",
    y_pred_proba={name: f"score {name}" for name in names},
    y_pred="answer",
    y_true="truth",
    metrics=["accuracy"],
    chunk_number=1,
)
estimator.fit(reference)
estimates = []
for k in range(sum(name.startswith("stretch_") for name in found.files)):
    result = estimator.estimate(frame(found[f"stretch_{k}"])).filter(period="analysis").to_df()
    estimates.append(float(result[("accuracy", "value")].iloc[0]))
print(json.dumps(estimates))
