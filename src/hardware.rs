//! What this machine is: instruction sets, caches, cores, limits, measured peaks; device profiles and roofline.
