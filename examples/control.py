"""An agent that finds out its task while it plays: train MoSS on point robots, stop, go on, meet new tasks.

python examples/control.py [iterations] [folder]
"""

import sys
from pathlib import Path

import torch

from selftaught import control
from selftaught.artifacts.checkpoint import load_state, save_state

iterations = int(sys.argv[1]) if len(sys.argv) > 1 else 12
checkpoint = Path(sys.argv[2] if len(sys.argv) > 2 else ".") / "moss.safetensors"
torch.set_num_threads(1)

family = control.PointRobot("direction")  # rewarded for moving one way, which nobody tells
draws = torch.Generator().manual_seed(0)
tasks, unseen = family.draw(64, draws), family.draw(64, draws)
config = control.MoSS()  # the baselines: context="none", "recurrent", or "task" (an oracle)
net = config.network(family, seed=0)

# Ctrl-C at any moment; started again, it goes on from the last saved iteration to the same bits.
begun = checkpoint.exists()
state = load_state(checkpoint) if begun else control.start(config, net, family, tasks, seed=0)
for after, figures in control.train(config, net, family, tasks, state, iterations):
    save_state(checkpoint, after)
    state = after
    print(state.step, *(f"{k} {figures[k]:.3g}" for k in ("return", "reconstruction", "transitions_per_second")))

agent = control.Agent(config, net, state.params | state.slow)
played = control.first_episode(agent, family, unseen)
found = control.purity(control.components(agent, played), family.classes(unseen))
changed = control.changed_episode(agent, family, unseen, unseen.roll(1, 0))
late = control.returns(changed, family.horizon // 2).mean()
print(f"return {control.returns(played).mean():.2f}, after a change {late:.2f}, purity of components {found:.2f}")
