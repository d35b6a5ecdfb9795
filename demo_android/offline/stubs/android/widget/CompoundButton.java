package android.widget;

public abstract class CompoundButton extends TextView {
    public boolean isChecked() { return false; }
}
