"""The commands of ``fa3gen``, by what they are for; ``fa3gen.cli`` imports them all.

==============  =====================================================
``inspection``  show, schema, generate, verify
``making``      build, bundle, tune
``judging``     check, test, bench
``machine``     doctor, cache path, cache list, cache clear
``app``         what they share
==============  =====================================================
"""
