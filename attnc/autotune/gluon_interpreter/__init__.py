"""Gluon's kernels on a CPU: Triton interprets its own language alone, so this is an interpreter.

`install` stands modules of these names in for Triton's, and an emitted module that is loaded then
runs as it was written. What a Hopper card does side by side is done here in an order that a seeded
draw chooses: warp groups take turns, copies land late, products read their operands when they are
waited for. Every access to shared memory is held against those before it by what the barriers
say about their order, and one that nothing orders is an error, whatever the draw. So are reads of
a product that was not waited for, waits that nobody ends, arrivals that a barrier does not expect,
copies of what was not fenced, elements written twice, and addresses outside of a tensor.

Source: the PTX ISA 8.5 (mbarrier, cp.async.bulk.tensor, wgmma, fence.proxy.async); the order is
kept by vector clocks, as in FastTrack (Flanagan and Freund, 2009).
"""
