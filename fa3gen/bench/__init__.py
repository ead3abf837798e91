"""Side-by-side timing of fa3gen's ops and their peers on one GPU; needs torch alone."""
