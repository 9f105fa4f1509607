"""Vector quantizers: codes for vectors, all behind one interface (`quantizer.Quantizer`)."""
