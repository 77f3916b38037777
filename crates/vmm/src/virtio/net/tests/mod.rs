mod frames;
mod guest;
mod misuse;
mod restore;
mod wire;
