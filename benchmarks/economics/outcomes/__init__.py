"""What can be gained once a price stands: by stopping, by false declarations, by knowing more.

Rates are fixed at clearing so that the expectation over the predicted outcomes is the price. This
study plays deals out under two truths:

    predicted   the 16 scenarios that a deal was cleared under: predictions are right
    real        lengths of a real trace, skewed times, all correlated; the project's own model
                learnt 256 such tasks, so predictions are as wrong as they are in practice

Shares are of the sum of honest prices unless they say otherwise; `_se` are standard errors over
deals or markets. Where predictions are right there is no chance but in the choice of deals.

    deals.py         tasks, providers, deals, and how they may go
    plays.py         deals played out token by token
    rules.py         the rule of settlement, and others to compare
    samples.py       where deals come from, and how figures of many are put together
    markets.py       small markets, in which one agent lies
    expectation.py   the mean against the price
    cancelling.py    requesters that cancel
    declarations.py  requesters that declare other deadlines
    stopping.py      providers that stop, or claim earlier times
    lengths.py       agents that know more of lengths than the model
    digests.py       providers that show other blocks than they hold
    run.py           all of it

`python -m benchmarks.economics.outcomes --json -` needs the Azure trace in ../shared/data and says
so where it is missing.
"""
