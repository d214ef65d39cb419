"""Plan -> text: modules, kernels' statements, launchers, formulas; templates print from here."""
