"""The conv family: a filter's weight depends on i - j alone; its forms, kernels and plans."""
