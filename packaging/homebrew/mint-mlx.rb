# Formula of a tap of one's own (homebrew/core asks for one resource per dependency, and has another `mint`).
# tools/release.sh fills in URL and SHA256; HOMEPAGE is filled in at publication.
class MintMlx < Formula
  desc "Quantize language models into MLX folders under a memory budget"
  homepage "HOMEPAGE"
  url "URL"
  sha256 "SHA256"
  license "MIT"

  depends_on arch: :arm64
  depends_on :macos
  depends_on "python@3.12"

  conflicts_with "mint", because: "both install a `mint` binary"

  def install
    system "python3.12", "-m", "venv", libexec
    system libexec/"bin/python", "-m", "pip", "install", buildpath
    bin.install_symlink Dir[libexec/"bin/mint", libexec/"bin/mlx_lm*"]
  end

  test do
    assert_match version.to_s, shell_output("#{bin}/mint --version")
  end
end
