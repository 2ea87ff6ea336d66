"""One pass over a data set makes one record a picture; every figure is a view of these records."""
