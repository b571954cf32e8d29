"""Who is truthful in which clearing mode, when, and what breaks it: an empirical study.

world.py        what is true: tasks, providers, lengths and times; and how predictions miss it
rounds.py       a round of the real mechanism on declarations, its outcome under the truth
markets.py      markets drawn at random and with a structure
traces.py       markets cut out of replayed traces
lies.py         what one agent may declare instead of the truth
baseline.py     everybody truthful: efficiency, who gets the gains, deficit, losses
search.py       the best lie, with full knowledge of the market and without
shills.py       providers that bid under another name
splits.py       agents that act as several, or with several tasks
sharing.py      why `provider` mode does not share a bonus by welfare
equilibrium.py  everybody lies as is best for it
outcomes/       what can be gained once a price stands
study.py        one market, everything that is measured on it
report.py       what markets show to tables
plots.py        tables to pictures
"""
