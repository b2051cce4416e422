"""A sweep from Python: 8 PPO configurations with 2 seeds each in one compiled program. Requires the extra `sweep`."""

import numpy as np

import haepo_jax as hx

found = hx.sweep(
    "haepo/random_walk",
    "ppo",
    {"learning_rate": "tag(log,interval(1e-5,1e-2))", "entropy_coef": [0, 0.01]},
    num_configs=8,
    num_seeds=2,
    total_steps=8_000,
)
rates = found.values["algo.learning_rate"]
for index in np.argsort(rates):
    print(f"learning_rate={rates[index]:.1e}: returns {found.returns[index].round(2)}")
best = found.best()
print("best:", found.command(best))
