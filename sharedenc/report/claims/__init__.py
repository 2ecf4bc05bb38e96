"""The claims of the reference study and the checks that test them."""
