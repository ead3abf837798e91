"""The test matrix: kernels and calls that cover every pair of choices, each judged against fp64.

=============  =================================================================================
``factors``    what a spec and a call choose between
``points``     a kernel of the matrix: one value of each factor of a spec
``covering``   rows that have every pair of values that any allowed row can have
``sets``       the kernels of ``quick`` and ``full``, as they were found, and the whole product
``calls``      the calls of a kernel, by the sizes of its tiles
``run``        the calls, judged; needs torch alone, like all above it but ``sets``
``worker``     runs on a GPU in a process of their own, which a fault or a hang may end
``journal``    the outcomes so far, for a run that is cut off
``execute``    a run, one kernel after the other
``report``     what was found, as Markdown, JSON and JUnit's XML
``parts``      kernels built in parts to be carried to a GPU, and judged there by torch alone
``targets``    the kernels as interpreted ops, or built
``command``    ``fa3gen test``
=============  =================================================================================
"""
