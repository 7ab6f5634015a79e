"""The catalogue in Milvus, for any number of processes; needs the extra `milvus`."""
