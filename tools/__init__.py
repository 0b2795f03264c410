"""The tools of this repository; a package so that their tests can import them."""
