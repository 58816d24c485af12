"""The noise schedule, the objective and sampling."""
