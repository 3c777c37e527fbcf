"""Digits from four sources that look different: one model for any mixture of them, even if no data are shared.

python examples/domains.py
"""

import numpy as np
from sklearn.linear_model import LogisticRegression

from selftaught.domains import DMSAClassifier, digit_domains, worst_and_mean

train, test = digit_domains(each=150), digit_domains(each=150, test=True)

# All data in one place: sample_domain says which source a row is from.
rows = {
    "DMSA, z by the program": DMSAClassifier(),
    "DMSA, z uniform": DMSAClassifier(z="uniform"),
    "best single source": DMSAClassifier(z="best"),
    "same weights everywhere": DMSAClassifier(weighting="constant", z="uniform"),
}
for name, model in rows.items():
    model.fit(train.X, train.y, train.sample_domain)
    worst, mean = worst_and_mean(model.domain_losses(test.X, test.y, test.sample_domain))
    print(f"{name:24} cross-entropy on the worst mixture {worst:.2f}, mean over mixtures {mean:.2f}")

# Four sites: each trains on its own digits and shares a function and rows without labels.
sites = [train.sample_domain == number for number in train.names]
models = [LogisticRegression(max_iter=2000).fit(train.X[own], train.y[own]) for own in sites]
joint = DMSAClassifier.from_predictors(
    [m.predict_proba for m in models], train.X, train.sample_domain, classes=np.arange(10), z="uniform"
)
print(f"accuracy of the sites' predictors together: {joint.score(test.X, test.y):.2f}")
