"""The aggressor engine: which side of the market each trade took, from the NBBO in force at its SIP time."""
