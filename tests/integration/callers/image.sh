# Makes images without a registry, for containerd and its CRI plugin. Sourced after lib.sh.

digest() { sha256sum "$1" | cut -d' ' -f1; }

# make_image FILE NAME ROOTFS [ENTRYPOINT]: an archive as `docker save` writes it, of one layer.
make_image() {
  local dir=$work/archive layer config
  rm -rf "$dir"; mkdir -p "$dir"
  tar -C "$3" --owner 0 --group 0 -cf "$dir/layer.tar" .
  layer=$(digest "$dir/layer.tar")
  cat >"$dir/config.json" <<JSON
{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin"],"Entrypoint":${4:-null},"Cmd":["sh"]},
 "rootfs":{"type":"layers","diff_ids":["sha256:$layer"]},"history":[{"created_by":"rt's tests"}]}
JSON
  config=$(digest "$dir/config.json")
  mv "$dir/config.json" "$dir/$config.json"
  echo "[{\"Config\":\"$config.json\",\"RepoTags\":[\"$2\"],\"Layers\":[\"layer.tar\"]}]" >"$dir/manifest.json"
  tar -C "$dir" -cf "$1" manifest.json "$config.json" layer.tar
  rm -rf "$dir"
}
