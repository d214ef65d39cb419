"""Algebra -> Plan: the candidates of each form, what each costs, and which comes first."""
