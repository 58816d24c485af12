"""The mathematics: noise schedule, objective, variational bound."""
