"""The same mathematics written the plain way: what a careful research script does, without looking at speed."""
