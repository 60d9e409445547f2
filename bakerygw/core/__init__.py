"""Pure decisions over frozen values: no Twisted, no clock, no random, no logging."""
