"""The sizes that a command line plans for: head dims, lengths, channels."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "plan flash --dim 300",
            "error[A500]: --dim 300: head dim 300 is outside 16 to 256\n"
            "  hint: split or pad the heads\n",
        ),
        (
            "emit flash --dim 64,8",
            "error[A500]: --dim 64,8: head dim 8 is outside 16 to 256\n"
            "  hint: split or pad the heads\n",
        ),
        (
            "plan hyena --dim 64",
            "error[A500]: --dim is for head dims, and 'hyena' has none: it is a convolution\n"
            "  hint: leave --dim out; --shape B,T,C counts its channels\n",
        ),
        (
            "plan hyena --shape 2,1000,3,4",
            "error[A500]: --shape '2,1000,3,4' is not B,T or B,T,C\n  hint: whole numbers from 1\n",
        ),
        (
            "plan hyena --shape 2,1000,64 --heads 32",
            "error[A500]: --shape 2,1000,64 and --heads 32 both count the channels\n"
            "  hint: leave --heads out\n",
        ),
        (
            "build hyena --target cuda:90 --dim 64 -o out",
            "error[A500]: --dim is for head dims, and convolutions have none\n"
            "  hint: leave --dim out; --tokens N says which lengths to plan for\n",
        ),
        (
            "build flash linear --target cuda:90 --tokens 100 -o out",
            "error[A500]: --tokens is for convolutions, whose forms differ from length to length\n"
            "  note: none here: flash, linear\n",
        ),
    ],
)
def test_sizes_that_no_kernel_has_exit_64(line, message, attnc):
    done = attnc(*line.split())
    assert (done.status, done.out, done.err) == (64, "", message)


def test_the_third_number_of_a_convolutions_shape_is_its_channels(attnc):
    by_shape = attnc("plan", "hyena", "--shape", "2,1000,96", "--no-compiled")
    assert by_shape.out.splitlines()[2].startswith("for    B=2 T=1000 C=96, ")
    by_heads = attnc("plan", "hyena", "--shape", "2,1000", "--heads", "96", "--no-compiled")
    assert (by_shape.status, by_heads.out) == (0, by_shape.out)
