"""The auctioneer: mechanism, rounds, QoS predictors, transcript verification. Pure."""
