"""Twenty devices with a few kinds of digits each, and names of their own for them: who needs how many models sent?

python examples/federated.py
"""

import sys

import torch
from sklearn.datasets import load_digits

from selftaught.federated import Dyn, Federation, LocalSteps, MAMLModel, NoCorrection, Scaf, alid, mean_accuracy
from selftaught.federated import mlp_classifier as network

rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 40
digits = load_digits()
x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)

# Any client_id -> (x_train, y_train, x_test, y_test) will do; here every device has 4 of the 10 digits.
clients = alid(x, y, devices=20, classes_each=4, seed=0)
model = MAMLModel(classes=4, support=20, query=20, rate=0.1, steps=1)

for correction in (NoCorrection(), Dyn(alpha=0.1), Scaf()):
    net = network(inputs=64, hidden=64, width=32, classes=4, seed=0)
    federation = Federation(net, clients, model, correction, LocalSteps(steps=20, rate=0.1), fraction=0.2)
    state, sent, reached = federation.start(), 0, "never"
    for _ in range(rounds):
        state, record = federation.round(state)
        sent += record.models
        accuracy = mean_accuracy(federation.accuracies(state))
        if accuracy >= 0.8:
            reached = f"after {record.round} rounds and {sent} models"
            break
    print(f"{correction!s:18} personal accuracy {accuracy:.2f}, 0.80 {reached}")
